"""Lower bounds on the privacy loss, from counted errors of a distinguisher."""
