"""NVIDIA FLARE: one defence as a filter of a site's results, and its counterpart on the server.

In a site's ``local/privacy.json``, where the site decides and not the job::

    {"scopes": [{"name": "guarded", "task_result_filters": [{
        "path": "gradguard.integrations.nvflare.GuardFilter",
        "args": {"defense": "{\\"name\\": \\"top-k\\", \\"transform\\": [...]}", "wire": true}}]}],
     "default_scope": "guarded"}

A job chooses among the scopes: put the filter into all of them, with the same ``ledger`` if there
is a budget, and name a default, without which jobs that name no scope pass by every filter.
NVFlare's simulator applies no ``privacy.json`` to its sites: there the filter has to be in the
job's ``config_fed_client.json``, and ``gradguard.integrations.nvflare.`` in the
``class_allow_list`` of ``local/resources.json``.

On the server, in ``task_result_filters`` of its ``privacy.json`` or of the job:
``gradguard.integrations.nvflare.DecodingFilter``.
"""

try:
    import nvflare.apis.dxo_filter as _filters
except ImportError as error:
    raise ImportError(
        "NVFlare's integration needs NVFlare: pip install 'gradguard[nvflare]'"
    ) from error

from gradguard.integrations.nvflare.decoding_filter import DecodingFilter as DecodingFilter
from gradguard.integrations.nvflare.guard_filter import GuardFilter as GuardFilter

del _filters
