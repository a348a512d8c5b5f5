//! What a reply says of each of the writes that it answers.

use bson::Document;

use super::{
    classify,
    command::{Command, CommandKind},
};
use crate::sink::{SinkError, Write, Written};

/// A majority has taken what was done.
pub fn confirmed(reply: &Document) -> Result<(), SinkError> {
    match reply.get_document("writeConcernError") {
        Ok(error) => Err(classify::write_concern_error(error)),
        Err(_) => Ok(()),
    }
}

/// How each write of a command has ended, in `outcomes` at its place.
///
/// # Errors
/// Where what one of them ended with is a matter of the whole batch.
pub fn read_reply(
    reply: &Document,
    command: &Command<'_>,
    writes: &[Write<'_>],
    outcomes: &mut [Written],
) -> Result<(), SinkError> {
    confirmed(reply)?;
    let index_of = |doc: &Document| doc.get_i32("index").ok().and_then(|n| usize::try_from(n).ok());
    let failed: Vec<_> = classify::failed(reply).collect();
    if command.kind == CommandKind::Insert {
        for &n in &command.places {
            outcomes[n] = Written::Applied { created: true };
        }
    }
    let upserted = reply.get_array("upserted").into_iter().flatten();
    for upserted in upserted.filter_map(bson::Bson::as_document) {
        if let Some(&n) = index_of(upserted).and_then(|n| command.places.get(n)) {
            outcomes[n] = Written::Applied { created: true };
        }
    }
    for error in &failed {
        let Some(&n) = index_of(error).and_then(|n| command.places.get(n)) else {
            return Err(SinkError::Unavailable("a write error that names no write".to_owned()));
        };
        outcomes[n] = match (
            &writes[n],
            classify::write_error(error, command.kind == CommandKind::Insert)?,
        ) {
            // Whatever keeps a change from being made, the whole document can still be written.
            (Write::Change { .. }, _) => Written::Unmatched,
            (_, written) => written,
        };
    }
    mark_unmatched(reply, command, writes, outcomes, failed.len())
}

/// An update command answers with one count for all its statements. When not all matched, and
/// changes are among them, it is not known which: all changes count as unmatched, since writing a
/// whole document once more is harmless.
fn mark_unmatched(
    reply: &Document,
    command: &Command<'_>,
    writes: &[Write<'_>],
    outcomes: &mut [Written],
    failed: usize,
) -> Result<(), SinkError> {
    let matched = reply
        .get_i32("n")
        .map_err(|_| SinkError::Unavailable("an answer without a count".to_owned()))?;
    let expected = command.places.len() - failed;
    if command.kind == CommandKind::Update && usize::try_from(matched).unwrap_or(0) < expected {
        for &n in &command.places {
            if matches!(writes[n], Write::Change { .. }) {
                outcomes[n] = Written::Unmatched;
            }
        }
    }
    Ok(())
}
