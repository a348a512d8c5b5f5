//! The rows of failing commands.

use mongodb::bson::{Document, doc};

/// A sentence, the commands that fail, one after another, and how.
pub type Row = (&'static str, &'static [&'static str], Document);

/// Longer than the agent waits for an answer.
fn stall() -> Document {
    let ms = if super::is_whole() { 33_000 } else { 7_000 };
    doc! { "blockConnection": true, "blockTimeMS": ms }
}

fn closed() -> Document {
    doc! { "closeConnection": true }
}

/// Such a fault is met only by who gives up waiting.
pub fn is_stall(fault: &Document) -> bool {
    fault.contains_key("blockConnection")
}

fn code(code: i32) -> Document {
    doc! { "errorCode": code }
}

fn labelled(code: i32, label: &str) -> Document {
    doc! { "errorCode": code, "errorLabels": [label] }
}

/// Rows from this one on lose history, so that capped collections may stand in another order.
pub const LOST_HISTORY: &str = "a lost history is made good by a comparison";

pub const NO_SNAPSHOT: i32 = 134;

/// The first is asked where all is well, which a comparison on demand needs.
const READS: &[&str] = &["find", "listCollections", "aggregate", "getMore"];
const LISTS: &[&str] = &["listCollections", "listIndexes"];
const STREAM: &[&str] = &["getMore", "aggregate"];
const WRITES: &[&str] = &["insert", "update", "delete"];

pub fn of_the_local_side() -> Vec<Row> {
    vec![
        ("a cursor that the server has lost is opened again", &["getMore"], code(43)),
        ("a cursor that was killed is opened again", &["getMore"], code(237)),
        ("a query plan that was killed is made again", &["getMore"], code(175)),
        ("a primary that stepped down is looked for again", READS, code(189)),
        ("a server that is no primary any more is left", READS, code(10107)),
        ("a server that shuts down is waited for", READS, code(91)),
        ("an interruption by a change of state is waited out", READS, code(11602)),
        (
            "a server that is overloaded is waited for",
            READS,
            labelled(462, "SystemOverloadedError"),
        ),
        ("a time limit that is exceeded is met by trying again", READS, code(262)),
        ("a snapshot that is not there yet is waited for", &["find"], code(NO_SNAPSHOT)),
        ("a missing privilege is waited for until it is granted", READS, code(13)),
        ("an error that nobody knows ends nothing", READS, code(424_242)),
        ("a connection that is closed in the middle is made again", READS, closed()),
        ("a server that does not answer is given up and asked again", READS, stall()),
        ("a list that the server cannot give is asked for again", LISTS, code(424_242)),
        ("a list that is lost on its way is asked for again", LISTS, closed()),
        (LOST_HISTORY, STREAM, code(286)),
        ("a stream that cannot resume is begun anew", STREAM, code(280)),
        ("a token that is not understood is given up", STREAM, code(260)),
        ("an oplog that rolled over under the cursor is made good", STREAM, code(136)),
        ("an event that is too large is gone around", STREAM, code(10334)),
    ]
}

pub fn of_atlas() -> Vec<Row> {
    let concern = |code: i32| doc! { "writeConcernError": { "code": code, "errmsg": "planted" } };
    let schema: &[&str] = &["create", "drop", "renameCollection"];
    let indexes: &[&str] = &["createIndexes", "dropIndexes", "collMod"];
    vec![
        ("a primary that stepped down is looked for again", WRITES, code(189)),
        ("a server that is no primary any more is left", WRITES, code(10107)),
        ("a server that shuts down is waited for", WRITES, code(91)),
        ("an interruption at a shutdown is waited out", WRITES, code(11600)),
        ("a time limit costs no retry", WRITES, code(50)),
        ("a write conflict is tried again", WRITES, code(112)),
        ("a full disk of Atlas is waited for", WRITES, code(14031)),
        ("a quota that is used up is waited for", WRITES, code(8000)),
        ("throttling is waited out", WRITES, labelled(462, "SystemOverloadedError")),
        (
            "an unknown error with a retry label is tried again",
            WRITES,
            labelled(424_242, "RetryableWriteError"),
        ),
        ("a missing privilege is waited for until it is granted", WRITES, code(18)),
        ("a write that a majority did not confirm is made again", WRITES, concern(64)),
        ("a write that a stepdown left unconfirmed is made again", WRITES, concern(189)),
        ("a connection that is closed in the middle is made again", WRITES, closed()),
        ("a server that does not answer is given up and asked again", WRITES, stall()),
        ("a schema change that is interrupted is made again", schema, code(11602)),
        ("a schema change whose answer is lost is made again", schema, closed()),
        ("a change of indexes or options that is interrupted is made again", indexes, code(11602)),
        ("a change of indexes or options whose answer is lost is made again", indexes, closed()),
        ("a list that Atlas cannot give is asked for again", LISTS, code(11602)),
        ("a list that is lost on its way is asked for again", LISTS, closed()),
    ]
}
