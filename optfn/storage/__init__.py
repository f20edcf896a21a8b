"""Storage of slots in low precision: codecs for `optfn.store`."""

from optfn.storage.codecs import Codec as Codec
from optfn.storage.codecs import bf16 as bf16
from optfn.storage.codecs import by_slot as by_slot
from optfn.storage.codecs import decode as decode
from optfn.storage.codecs import encode_like as encode_like
from optfn.storage.codecs import f16 as f16
from optfn.storage.codecs import factored as factored
from optfn.storage.codecs import fp8 as fp8
from optfn.storage.codecs import int4 as int4
from optfn.storage.codecs import int8 as int8
from optfn.storage.codecs import split as split
