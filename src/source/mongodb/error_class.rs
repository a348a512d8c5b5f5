//! Errors of the local database in the words of a source. What they mean is decided in
//! [`class`](crate::mongo::class).

use crate::{
    mongo::{
        MongoError,
        class::{Class, advice, class_of},
    },
    source::SourceError,
};

/// "BSON field … is an unknown field": an option that this server does not know.
pub const UNKNOWN_FIELD: i32 = 40415;

impl From<MongoError> for SourceError {
    fn from(error: MongoError) -> Self {
        match class_of(&error) {
            Class::Unavailable => SourceError::Unavailable(error.into()),
            Class::Denied => SourceError::Denied {
                advice: advice(&error, "MONGODB_LOCAL_URI"),
                source: error.into(),
            },
            Class::HistoryLost => SourceError::HistoryLost(error.into()),
            Class::Rejected => SourceError::Failed(error.into()),
        }
    }
}
