"""Networks: a body for each input, joined, dense layers, and a head that puts out Z numbers per action."""

from rlagents.networks.bodies import computes_in_bfloat16, has_pixels
from rlagents.networks.network import Network
from rlagents.networks.noisy import Noise

__all__ = ["Network", "Noise", "computes_in_bfloat16", "has_pixels"]
