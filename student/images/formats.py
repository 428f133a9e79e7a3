"""The one table of image files: which suffixes are taken, and what Pillow calls them. Imports nothing heavy."""

STILLS = {
    ".png": "PNG", ".apng": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".tif": "TIFF",
    ".tiff": "TIFF", ".webp": "WEBP", ".bmp": "BMP", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM",
    ".gif": "GIF", ".avif": "AVIF", ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".jpx": "JPEG2000", ".jpf": "JPEG2000",
}  # fmt: skip
"""File name suffix → Pillow's name of the format; what a file is, its first bytes decide."""
NIFTI = (".nii", ".nii.gz")
DICOM = (".dcm", ".dicom")
UNSUPPORTED = tuple(
    ".heic .heif .jxl .svg .ico .tga .psd .exr .hdr .xcf .eps .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .mha .mhd "
    ".nrrd .mgz .svs".split()
)
"""Suffixes of pictures that are not read: where files are passed over, these are counted."""
READABLE = (*STILLS, *DICOM, *NIFTI)
