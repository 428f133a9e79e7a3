"""The one table of image files: which suffixes are taken, and what Pillow calls them. Imports nothing heavy."""

import os

STILLS = {
    ".png": "PNG", ".apng": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".tif": "TIFF",
    ".tiff": "TIFF", ".webp": "WEBP", ".bmp": "BMP", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM",
    ".gif": "GIF", ".avif": "AVIF", ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".jpx": "JPEG2000", ".jpf": "JPEG2000",
}  # fmt: skip
"""File name suffix → Pillow's name of the format; what a file is, its first bytes decide."""
NIFTI = (".nii", ".nii.gz")
DICOM = (".dcm", ".dicom", ".ima")
UNSUPPORTED = tuple(
    ".heic .heif .jxl .svg .ico .tga .psd .exr .hdr .xcf .eps .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .mha .mhd "
    ".nrrd .mgz .svs .pam .pfm".split()
)
"""Suffixes of pictures that are not read: where files are passed over, these are counted."""
READABLE = (*STILLS, *DICOM, *NIFTI)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: by its dot, or what disks, bins and archivers keep beside files
    (the first holds a thumbnail of every picture)."""
    return name.startswith(".") or name in ("@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "__MACOSX")


def is_image_name(path: str | os.PathLike[str]) -> bool:
    """Whether a file is taken for an image where a folder is searched: by its suffix, or, where scanners give none (or
    the last number of a UID), by the mark of DICOM in it."""
    name = os.path.basename(path).lower()
    if name.endswith(READABLE):
        return True
    suffix = os.path.splitext(name)[1]
    if suffix and not suffix[1:].isdigit() or not os.path.isfile(path):  # to open a pipe would wait for ever
        return False
    try:
        with open(path, "rb") as file:
            return is_dicom(file.read(132))
    except OSError:
        return False


def is_dicom(start: bytes) -> bool:
    """By the mark behind 128 free bytes; without these, as it travels over a network, by its first element: of group 8,
    with two letters for its type or a short length."""
    bare = start[:2] == b"\x08\x00" and start[3:4] == b"\x00" and len(start) >= 8
    known = start[4:6].isalpha() and start[4:6].isupper() or int.from_bytes(start[4:8], "little") < 256
    return start[128:132] == b"DICM" or bare and known
