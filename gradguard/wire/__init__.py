"""Messages as bytes: ``encode``, ``decode`` and ``inspect``, for a wire that nobody guards.

The layout is in docs/wire.md.
"""

from gradguard.wire.decoder import decode as decode
from gradguard.wire.encoder import encode as encode
from gradguard.wire.errors import WireError as WireError
from gradguard.wire.listing import Listing as Listing
from gradguard.wire.listing import TensorListing as TensorListing
from gradguard.wire.listing import inspect as inspect
from gradguard.wire.sending import encode_release as encode_release
