"""The net as the paper draws it: backbones, blocks, fusions and prompt pools."""
