"""Stand-ins for models, so that everything runs without a key, a download or a network.

They are real code and no models: `LexicalEmbeddings` knows words and their parts but no meaning, and
`OfflineChatModel` quotes what was recalled. Both say so wherever they speak.
"""

from langmem_stack.offline.chat import OfflineChatModel
from langmem_stack.offline.embeddings import LexicalEmbeddings

__all__ = ["LexicalEmbeddings", "OfflineChatModel"]
