//! What an error of the local database means. Codes by their names in MongoDB's `error_codes.yml`.

use mongodb::error::ErrorKind;

use super::SourceError;
use crate::mongo::{DENIED, MongoError, UNAVAILABLE, is_in};

/// `BSONObjectTooLarge`: an event that does not fit a reply.
pub const BSON_OBJECT_TOO_LARGE: i32 = 10334;
/// "BSON field … is an unknown field": an option that this server does not know.
pub const UNKNOWN_FIELD: i32 = 40415;

mod code {
    pub const CAPPED_POSITION_LOST: i32 = 136;
    pub const INVALID_RESUME_TOKEN: i32 = 260;
    pub const CHANGE_STREAM_FATAL_ERROR: i32 = 280;
    pub const CHANGE_STREAM_HISTORY_LOST: i32 = 286;
}

impl From<MongoError> for SourceError {
    fn from(error: MongoError) -> Self {
        let MongoError::Driver(driver) = &error else {
            return match error {
                MongoError::BadUri(_) => SourceError::Denied(error),
                MongoError::Silent(_) | MongoError::Driver(_) => SourceError::Unavailable(error),
            };
        };
        match driver.kind.as_ref() {
            ErrorKind::Command(command) => match command.code {
                code::CAPPED_POSITION_LOST
                | code::INVALID_RESUME_TOKEN
                | code::CHANGE_STREAM_FATAL_ERROR
                | code::CHANGE_STREAM_HISTORY_LOST
                | BSON_OBJECT_TOO_LARGE => SourceError::HistoryLost(error),
                listed if is_in(DENIED, listed) => SourceError::Denied(error),
                listed if is_in(UNAVAILABLE, listed) => SourceError::Unavailable(error),
                _ => SourceError::Failed(error),
            },
            ErrorKind::Authentication { .. } | ErrorKind::InvalidTlsConfig { .. } => {
                SourceError::Denied(error)
            }
            ErrorKind::Io(_)
            | ErrorKind::ServerSelection { .. }
            | ErrorKind::ConnectionPoolCleared { .. }
            | ErrorKind::DnsResolve { .. } => SourceError::Unavailable(error),
            _ => SourceError::Failed(error),
        }
    }
}
