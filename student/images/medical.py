"""DICOM and NIfTI: which files they are, and who reads them. Optional extra `medical`: pydicom, nibabel."""

from student.images.dicom import read_dicom
from student.images.formats import DICOM, NIFTI, is_dicom
from student.images.nifti import read_nifti
from student.images.picture import ImageFileError, Picture
from student.images.sample_values import ValueRange


def is_medical(data: bytes, name: str) -> bool:
    """By content for DICOM, by suffix for both."""
    return is_dicom(data[:132]) or name.lower().endswith(NIFTI + DICOM)


def own_suffix(data: bytes, name: str, output_suffix: str) -> str:
    """`output_suffix` as `read_picture` wants it: nothing where it names the medical format that the content has.

    So `- out.dcm` and `IM0001 out.dcm` are no conversions. Raises `ImageFileError` where they would be.
    """
    if not output_suffix or not is_medical(data, name):
        return output_suffix
    if name.lower().endswith(NIFTI):
        if name.lower().endswith(output_suffix):
            return ""
        raise ImageFileError(f"a NIfTI volume keeps its own format; name the output *{_nifti_suffix(name)}")
    if output_suffix in DICOM:
        return ""
    raise ImageFileError("a DICOM file keeps its own format; name the output *.dcm")


def _nifti_suffix(name: str) -> str:
    return NIFTI[1] if name.lower().endswith(NIFTI[1]) else NIFTI[0]


def read_medical(data: bytes, name: str, span: ValueRange | None = None) -> Picture:
    """Decode a DICOM file or a NIfTI volume; raises `ImageFileError`.

    `span`: what is black and white, in the file's physical values (Hounsfield units in CT).
    """
    reader = read_nifti if name.lower().endswith(NIFTI) else read_dicom
    package = "nibabel" if reader is read_nifti else "pydicom"
    try:
        return reader(data, span)
    except ImageFileError:
        raise
    except ImportError as error:
        raise ImageFileError(f"needs {package} ({error}): pip install 'teachonce[medical]'") from None
    except Exception as error:  # these libraries raise a wide range of errors for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageFileError(f"cannot be decoded by {package}: {reason}") from error
