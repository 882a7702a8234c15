"""NVIDIA FLARE: one defence as a filter of a site's results, and its counterpart on the server.

In a site's ``local/privacy.json``, for every job that runs there::

    {"scopes": [{"name": "guarded", "task_result_filters": [{
        "path": "gradguard.integrations.nvflare.GuardFilter",
        "args": {"defense": "{\\"name\\": \\"top-k\\", \\"transform\\": [...]}", "wire": true}}]}],
     "default_scope": "guarded"}

On the server, in ``task_result_filters`` of its ``local/privacy.json`` or of the job:
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
from gradguard.integrations.nvflare.site_settings import site_seed as site_seed

del _filters
