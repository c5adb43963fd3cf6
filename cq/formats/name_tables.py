"""Names of weights by family, as Hugging Face writes them beside this library's own. Holds tables only."""

from .name_tables_decoders import DECODERS
from .name_tables_encoders import ENCODERS

FAMILIES = ENCODERS | DECODERS
