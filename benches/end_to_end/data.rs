//! Documents that look like a shop's, and the changes that an application makes to them.
//!
//! Each document follows from its number, so that a run can be repeated and nothing has to be remembered. Nearly half
//! of the text are codes that no compressor can guess: a batch compresses two to three times, as real data does.

use std::ops::Range;

use bson::{RawArrayBuf, RawDocumentBuf, oid::ObjectId, raw::cstr, rawdoc};
use futures_util::StreamExt;
use mongodb::Client;

/// The collection that most scenarios work on.
pub const ORDERS: &str = "orders";

/// Of a document of the usual size.
pub const USUAL: usize = 325;

/// Commands at the same time when data is made.
const WRITERS: usize = 2;

const WORDS: [&str; 48] = [
    "delivery",
    "to",
    "the",
    "back",
    "door",
    "please",
    "ring",
    "twice",
    "gift",
    "wrapped",
    "with",
    "card",
    "fragile",
    "keep",
    "upright",
    "invoice",
    "by",
    "post",
    "customer",
    "called",
    "about",
    "colour",
    "size",
    "exchange",
    "blue",
    "green",
    "cotton",
    "linen",
    "shirt",
    "large",
    "small",
    "returned",
    "refund",
    "pending",
    "warehouse",
    "north",
    "shelf",
    "courier",
    "morning",
    "only",
    "after",
    "noon",
    "neighbour",
    "signed",
    "for",
    "parcel",
    "second",
    "attempt",
];
const NAMES: [&str; 16] = [
    "Anna", "Ben", "Carla", "David", "Elif", "Finn", "Greta", "Hugo", "Ines", "Jonas", "Klara",
    "Luca", "Mia", "Nils", "Olga", "Paul",
];
const CITIES: [&str; 12] = [
    "Hamburg", "Bremen", "Köln", "Leipzig", "Dresden", "Rostock", "Kiel", "Mainz", "Ulm", "Jena",
    "Bonn", "Essen",
];
const STATES: [&str; 5] = ["open", "paid", "packed", "sent", "done"];

/// As a driver makes them: a time, a part of the process, a counter.
pub fn id(n: u64) -> ObjectId {
    let mut bytes = [0x66, 0, 0, 0, 0x5a, 0x17, 0x3c, 0x99, 0x21, 0, 0, 0];
    bytes[1..4].copy_from_slice(&((n / 1_000) as u32).to_be_bytes()[1..]);
    bytes[9..12].copy_from_slice(&(n as u32).to_be_bytes()[1..]);
    ObjectId::from_bytes(bytes)
}

/// Document `n`, of about `size` bytes.
pub fn document(n: u64, size: usize) -> RawDocumentBuf {
    let mut random = fastrand::Rng::with_seed(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 7);
    let mut pick = |from: &'static [&str]| from[random.usize(..from.len())];
    let customer = rawdoc! { "name": pick(&NAMES), "city": pick(&CITIES) };
    let status = pick(&STATES);
    let placed = bson::DateTime::from_millis(1_760_000_000_000 + (n * 137) as i64);
    let mut document = rawdoc! {
        "_id": id(n),
        "number": n as i64,
        "customer": customer,
        "status": status,
        "revision": 0_i32,
        "quantity": random.i32(1..20),
        "total": f64::from(random.u32(100..100_000)) / 100.0,
        "placedAt": placed,
    };
    let room = size.saturating_sub(document.as_bytes().len() + "note".len() + 7);
    let mut note = String::with_capacity(room + 16);
    while note.len() < room {
        note += WORDS[random.usize(..WORDS.len())];
        note.push(' ');
        note += WORDS[random.usize(..WORDS.len())];
        note.push(' ');
        note.extend((0..9).map(|_| random.alphanumeric()));
        note.push(' ');
    }
    note.truncate(room);
    document.append(cstr!("note"), note);
    document
}

/// So many documents go into one command.
fn batch_of(size: usize) -> u64 {
    (4_000_000 / size as u64).clamp(1, 1_000)
}

fn parts(numbers: Range<u64>, batch: u64) -> impl Iterator<Item = Range<u64>> {
    let end = numbers.end;
    numbers.step_by(batch as usize).map(move |first| first..end.min(first + batch))
}

async fn run(client: &Client, command: RawDocumentBuf) {
    let reply = client.database("shop").run_raw_command(command).await.unwrap();
    assert!(!reply.contains_key("writeErrors"), "{reply:?}");
}

/// Runs a command for each part, a few at the same time.
async fn for_each(
    client: &Client,
    parts: impl Iterator<Item = Range<u64>>,
    command: impl Fn(Range<u64>) -> RawDocumentBuf,
) {
    let commands = futures_util::stream::iter(parts);
    commands.for_each_concurrent(WRITERS, |part| run(client, command(part))).await;
}

fn insert_command(collection: &str, documents: RawArrayBuf) -> RawDocumentBuf {
    rawdoc! { "insert": collection, "documents": documents, "ordered": false }
}

fn documents(numbers: Range<u64>, size: usize) -> RawArrayBuf {
    let mut documents = RawArrayBuf::new();
    for n in numbers {
        documents.push(document(n, size));
    }
    documents
}

/// Inserts these documents.
pub async fn insert(client: &Client, collection: &str, numbers: Range<u64>, size: usize) {
    let batches = parts(numbers, batch_of(size));
    for_each(client, batches, |part| insert_command(collection, documents(part, size))).await;
}

/// An update of four fields, none of which is as before.
fn update_of(n: u64, revision: u64) -> RawDocumentBuf {
    let changed = bson::DateTime::from_millis(1_770_000_000_000 + revision as i64);
    let set = rawdoc! {
        "status": STATES[(n + revision) as usize % STATES.len()],
        "total": (n % 9_973) as f64 + revision as f64 / 100.0,
        "revision": revision as i32,
        "placedAt": changed,
    };
    rawdoc! { "q": { "_id": id(n) }, "u": { "$set": set } }
}

fn update_command(updates: RawArrayBuf) -> RawDocumentBuf {
    rawdoc! { "update": ORDERS, "updates": updates, "ordered": false }
}

/// A backlog: what the application changes while the agent is not there.
#[derive(Clone, Copy, Debug)]
pub enum Backlog {
    Inserts {
        count: u64,
        size: usize,
    },
    /// Over and over the same documents where there are more updates than those.
    Updates {
        count: u64,
        documents: u64,
    },
    /// Of ten changes seven inserts, two updates and a delete; half of the latter two of what was just inserted.
    /// Whole thousands.
    Mixed {
        count: u64,
    },
}

impl Backlog {
    /// Change events of one [`apply`](Self::apply).
    pub fn events(self) -> u64 {
        match self {
            Self::Inserts { count, .. } | Self::Updates { count, .. } | Self::Mixed { count } => {
                count
            }
        }
    }

    /// Makes what must be there before.
    pub async fn prepare(self, local: &Client) {
        let documents = match self {
            Self::Inserts { .. } => 0,
            Self::Updates { documents, .. } => documents,
            Self::Mixed { count } => count / 1_000 * 150,
        };
        insert(local, ORDERS, 0..documents, USUAL).await;
    }

    /// Changes the local database. `round` counts from 1 and makes each time different.
    pub async fn apply(self, local: &Client, round: u64) {
        match self {
            Self::Inserts { count, size } => {
                let first = (round - 1) * count;
                insert(local, ORDERS, first..first + count, size).await;
            }
            Self::Updates { count, documents } => {
                for_each(local, parts(0..count, 1_000), |part| {
                    let mut updates = RawArrayBuf::new();
                    for n in part {
                        let revision = round * 10_000 + n / documents;
                        updates.push(update_of(n % documents, revision));
                    }
                    update_command(updates)
                })
                .await;
            }
            Self::Mixed { count } => {
                for block in 0..count / 1_000 {
                    mixed_block(local, block, count, round).await;
                }
            }
        }
    }
}

/// A thousand changes: 700 inserts, 200 updates, 100 deletes.
async fn mixed_block(local: &Client, block: u64, count: u64, round: u64) {
    // Behind the documents of the beginning, of which each block changes 100 and deletes 50.
    let new = count + block * 700;
    run(local, insert_command(ORDERS, documents(new..new + 700, USUAL))).await;
    let old = block * 150;
    let mut updates = RawArrayBuf::new();
    for n in (old..old + 100).chain(new..new + 100) {
        updates.push(update_of(n, round));
    }
    run(local, update_command(updates)).await;
    let mut deletes = RawArrayBuf::new();
    for n in (old + 100..old + 150).chain(new + 600..new + 650) {
        deletes.push(rawdoc! { "q": { "_id": id(n) }, "limit": 1_i32 });
    }
    run(local, rawdoc! { "delete": ORDERS, "deletes": deletes, "ordered": false }).await;
}
