"""The laws that every transform obeys; :mod:`gradguard.testing` exports the check."""
