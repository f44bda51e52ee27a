"""Data that is not in the bucket yet and must survive this process: a private folder per mount, its files and its journal.

It knows local disk only: never what a bucket is, nor when data is sent.
"""

from sluicefs.staging.file import StagingFile
from sluicefs.staging.folder import Left, Staging, scan
from sluicefs.staging.journal import Base, Journal, Record, StartedUpload

__all__ = ["Base", "Journal", "Left", "Record", "Staging", "StagingFile", "StartedUpload", "scan"]
