"""The names and the addresses of the published checkpoints that the recipes start from."""

_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"
_EDM2 = "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions"
_NAMES = {
    "edm": (
        "edm-cifar10-32x32-cond-vp",
        "edm-cifar10-32x32-uncond-vp",
        "edm-ffhq-64x64-uncond-vp",
        "edm-afhqv2-64x64-uncond-vp",
        "edm-imagenet-64x64-cond-adm",
    ),
    "edm2": (
        "edm2-img512-xs-2147483-0.135",
        "edm2-img512-s-2147483-0.130",
        "edm2-img512-m-2147483-0.100",
        "edm2-img512-l-1879048-0.085",
        "edm2-img512-xl-1342177-0.085",
        "edm2-img512-xxl-0939524-0.070",
    ),
}
PUBLISHED_FILES: dict[str, dict[str, str]] = {
    kind: {name: f"{folder}/{name}.pkl" for name in _NAMES[kind]} for kind, folder in (("edm", _EDM), ("edm2", _EDM2))
}
"""{kind of network: {name: address}}. The recipes of configs/edm state them."""
