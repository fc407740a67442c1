//! Which faults pass.
//!
//! Everything that goes wrong on the way to the server is sorted here, once. Never: a wrong key tried again; a cut
//! connection taken for the server's last word.

use std::io;

use russh_sftp::client::error::Error as SftpError;
use russh_sftp::protocol::{Status, StatusCode};

use crate::error::{Error, ErrorKind};

/// What went wrong, by what to do about it.
#[derive(Debug)]
pub(super) enum Fault {
    /// The connection is lost or was never made. A new one may do.
    Passing(Error),
    /// The server's word, or a mistake on our side. It would be the same next time.
    Permanent(Error),
}

impl Fault {
    /// The failure itself.
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Passing(error) | Self::Permanent(error) => error,
        }
    }

    /// A fault of the SSH connection.
    pub(super) fn ssh(message: String, error: russh::Error) -> Self {
        use russh::Error as Ssh;
        match error {
            Ssh::NoCommonAlgo { .. } | Ssh::UnknownAlgo | Ssh::Version => {
                Self::Permanent(Error::caused(ErrorKind::Refused, message, error))
            }
            _ => Self::Passing(Error::caused(ErrorKind::Unreachable, message, error)),
        }
    }

    /// A fault of the network below it.
    pub(super) fn network(message: String, error: io::Error) -> Self {
        Self::Passing(Error::caused(ErrorKind::Unreachable, message, error))
    }

    /// An answer of the SFTP server other than success, or none at all.
    pub(super) fn sftp(message: impl Into<String>, error: SftpError) -> Self {
        let kind = match &error {
            SftpError::Status(Status { status_code, .. }) => match status_code {
                StatusCode::NoSuchFile => ErrorKind::NotFound,
                StatusCode::PermissionDenied => ErrorKind::Refused,
                StatusCode::NoConnection | StatusCode::ConnectionLost => {
                    return Self::Passing(Error::caused(ErrorKind::Unreachable, message, error));
                }
                _ => ErrorKind::Failed,
            },
            SftpError::Limited(_) => ErrorKind::Failed,
            SftpError::IO(_)
            | SftpError::Timeout
            | SftpError::UnexpectedPacket
            | SftpError::UnexpectedBehavior(_) => {
                return Self::Passing(Error::caused(ErrorKind::Unreachable, message, error));
            }
        };
        Self::Permanent(Error::caused(kind, message, error))
    }
}

/// Whether the server said this.
pub(super) fn is_status(error: &SftpError, code: StatusCode) -> bool {
    matches!(error, SftpError::Status(status) if status.status_code == code)
}
