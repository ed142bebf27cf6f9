"""Layers.

Argument names, defaults and initial weights are Keras's, data are laid out like PyTorch's (channels first) unless a
layer says otherwise; see each layer.
"""

from .activations import *  # noqa: F403
from .attention import *  # noqa: F403
from .base import Layer as Layer
from .capsule import *  # noqa: F403
from .conv import *  # noqa: F403
from .core import *  # noqa: F403
from .decoder import *  # noqa: F403
from .dropout import *  # noqa: F403
from .graph import *  # noqa: F403
from .image import *  # noqa: F403
from .memory import *  # noqa: F403
from .norm import *  # noqa: F403
from .pool import *  # noqa: F403
from .rbf import *  # noqa: F403
from .rbm import *  # noqa: F403
from .recurrent import *  # noqa: F403
from .som import *  # noqa: F403
from .spiking import *  # noqa: F403
from .windows import image_data_format as image_data_format
from .windows import set_image_data_format as set_image_data_format

# The same layer under the names that other users know: alias -> name.
ALIASES = {
    "Conv1D": "Conv1d",
    "Conv2D": "Conv2d",
    "Conv3D": "Conv3d",
    "DepthwiseConv1D": "DepthwiseConv1d",
    "DepthwiseConv2D": "DepthwiseConv2d",
    "SeparableConv1D": "SeparableConv1d",
    "SeparableConv2D": "SeparableConv2d",
    "Conv1DTranspose": "ConvTranspose1d",
    "Conv2DTranspose": "ConvTranspose2d",
    "Conv3DTranspose": "ConvTranspose3d",
    "BatchNorm1d": "BatchNorm",
    "BatchNorm2d": "BatchNorm",
    "InstanceNorm1d": "InstanceNorm",
    "InstanceNorm2d": "InstanceNorm",
    "MaxPooling1D": "MaxPool1d",
    "MaxPooling2D": "MaxPool2d",
    "MaxPooling3D": "MaxPool3d",
    "MaxPool1D": "MaxPool1d",
    "MaxPool2D": "MaxPool2d",
    "AveragePooling1D": "AvgPool1d",
    "AveragePooling2D": "AvgPool2d",
    "AveragePooling3D": "AvgPool3d",
    "AvgPool1D": "AvgPool1d",
    "AvgPool2D": "AvgPool2d",
    "GlobalAveragePooling1D": "GlobalAvgPool1d",
    "GlobalAveragePooling2D": "GlobalAvgPool2d",
    "GlobalMaxPooling1D": "GlobalMaxPool1d",
    "GlobalMaxPooling2D": "GlobalMaxPool2d",
    "SimpleRNN": "RNN",
    "Concatenate": "Concat",
    "Resizing": "Resize",
    "ZeroPadding2D": "ZeroPad2d",
    "SpatialDropout1D": "SpatialDropout",
    "SpatialDropout2D": "SpatialDropout",
    "Dropout2d": "SpatialDropout",
    "Swish": "SiLU",
    "HardSwish": "Hardswish",
    "HardSigmoid": "Hardsigmoid",
    "HardTanh": "Hardtanh",
}
for _alias, _name in ALIASES.items():
    globals()[_alias] = globals()[_name]

__all__ = ["Layer", "image_data_format", "set_image_data_format", *ALIASES]
_MODULES = """
    activations attention capsule conv core decoder dropout graph image memory norm pool rbf rbm recurrent som spiking
"""
for _module in _MODULES.split():
    __all__ += globals()[_module].__all__
