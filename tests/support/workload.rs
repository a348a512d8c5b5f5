//! Random changes to random documents, of every kind that a server takes.

use mongodb::bson::{
    Bson, Decimal128, Document, JavaScriptCodeWithScope, Regex, Timestamp, doc, oid::ObjectId,
    spec::BinarySubtype,
};
use mongodb::{Client, Collection};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

/// An `_id` of a random type, from a small set, so that documents meet again. Values of different
/// numeric types that are equal are one document.
pub fn id(rng: &mut StdRng) -> Bson {
    let n = rng.random_range(0..6);
    match rng.random_range(0..14) {
        0 => Bson::Int32(n),
        1 => Bson::Int64(n.into()),
        2 => Bson::Double(n.into()),
        3 => Bson::Double(f64::from(n) + 0.5),
        4 => Bson::Decimal128(format!("{n}.50").parse::<Decimal128>().unwrap()),
        5 => Bson::String(format!("s{n}")),
        // One document, whichever number it is.
        6 => {
            let a = [Bson::Int32(n), Bson::Int64(n.into()), Bson::Double(n.into())];
            Bson::Document(doc! { "a": a.choose(rng).unwrap().clone(), "b": { "c": "x" } })
        }
        7 => Bson::Document(
            doc! { "b": { "c": Regex { pattern: "x".try_into().unwrap(), options: "i".try_into().unwrap() } }, "a": f64::from(n) },
        ),
        8 => Bson::ObjectId(ObjectId::from_bytes([n as u8; 12])),
        9 => Bson::Binary(mongodb::bson::Binary {
            subtype: BinarySubtype::Generic,
            bytes: vec![n as u8; 3],
        }),
        10 => Bson::DateTime(mongodb::bson::DateTime::from_millis(n.into())),
        11 => Bson::Timestamp(Timestamp { time: n as u32, increment: 1 }),
        12 => Bson::Boolean(n % 2 == 0),
        _ => [
            Bson::Null,
            Bson::Double(f64::NAN),
            Bson::MinKey,
            Bson::MaxKey,
            Bson::Double(f64::INFINITY),
        ]
        .choose(rng)
        .unwrap()
        .clone(),
    }
}

/// What is rare, and still a value: the other types, and the ends of the usual ones.
fn rare(rng: &mut StdRng) -> Bson {
    let binary = |subtype, bytes: &[u8]| {
        Bson::Binary(mongodb::bson::Binary { subtype, bytes: bytes.to_vec() })
    };
    let code = || "function() { return 1; }".to_owned();
    let scope = doc! { "a": 1, "b": { "c": "x" } };
    match rng.random_range(0..24) {
        0 => Bson::ObjectId(ObjectId::from_bytes([7; 12])),
        1 => binary(BinarySubtype::Uuid, &[9; 16]),
        2 => binary(BinarySubtype::Generic, &[]),
        3 => binary(BinarySubtype::UserDefined(0x80), &[0, 255, 1]),
        4 => Bson::RegularExpression(Regex {
            pattern: "^x.*$".try_into().unwrap(),
            options: "im".try_into().unwrap(),
        }),
        5 => Bson::JavaScriptCode(code()),
        6 => Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: code(), scope }),
        7 => Bson::Symbol("a symbol".to_owned()),
        8 => Bson::Undefined,
        9 => Bson::MinKey,
        10 => Bson::MaxKey,
        11 => Bson::Double(f64::NAN),
        12 => Bson::Double(-0.0),
        13 => Bson::Double(f64::NEG_INFINITY),
        14 => Bson::Decimal128("NaN".parse().unwrap()),
        15 => Bson::Decimal128("-0E+3".parse().unwrap()),
        16 => Bson::Int64(i64::MIN),
        17 => Bson::DateTime(mongodb::bson::DateTime::from_millis(-1)),
        18 => Bson::String("a\0b".to_owned()),
        20 => {
            let of_old = [BinarySubtype::BinaryOld, BinarySubtype::UuidOld, BinarySubtype::Md5];
            binary(*of_old.choose(rng).unwrap(), &[3; 16])
        }
        21 => binary(BinarySubtype::from(rng.random_range(6..9)), &[0, 0, 7]),
        22 => {
            let ends = ["Infinity", "-Infinity", "-NaN", "-0", "1E+6111", "-1E-6176"];
            Bson::Decimal128(ends.choose(rng).unwrap().parse().unwrap())
        }
        // Of two, three and four bytes each.
        19 => {
            let longest = if rng.random_bool(0.1) { 8_000 } else { 400 };
            Bson::String("ü€𝄞".repeat(rng.random_range(1..longest)))
        }
        _ => (0..*[40, 90].choose(rng).unwrap()).fold(Bson::Int32(1), |inner, n| {
            if n % 3 == 0 { Bson::Array(vec![inner]) } else { Bson::Document(doc! { "d": inner }) }
        }),
    }
}

/// A random value, nested up to `depth`.
pub fn value(rng: &mut StdRng, depth: u32) -> Bson {
    if rng.random_bool(0.1) {
        return rare(rng);
    }
    match rng.random_range(0..if depth == 0 { 9 } else { 12 }) {
        0 => Bson::Int32(rng.random_range(-5..5)),
        1 => Bson::Int64(rng.random()),
        2 => Bson::Double(f64::from(rng.random_range(-50..50)) / 4.0),
        3 => Bson::String("x".repeat(rng.random_range(0..20))),
        4 => Bson::Boolean(rng.random()),
        5 => Bson::Null,
        6 => Bson::Decimal128("1.10".parse().unwrap()),
        7 => Bson::DateTime(mongodb::bson::DateTime::from_millis(rng.random_range(0..1 << 40))),
        // Never empty. A server (6.0.5) that recovers from a crash replays a pipeline's update and fills
        // an empty timestamp in with the time of its recovery, on either side and without an event; so
        // workloads in which servers are killed cannot hold any. They are copied as they are:
        // `documents_of_every_odd_form_arrive_as_they_are`.
        8 => Bson::Timestamp(Timestamp { time: rng.random_range(1..3), increment: 0 }),
        9 | 10 => Bson::Document(fields(rng, depth - 1)),
        _ => Bson::Array((0..rng.random_range(0..5)).map(|_| value(rng, depth - 1)).collect()),
    }
}

/// Names that collide often; some hold dots and dollars, or nothing, or are numbers.
pub fn field(rng: &mut StdRng) -> String {
    let names = ["a", "b", "c", "d", "arr", "o", "0", "1", "a.b", "$x", "", "ünïcode"];
    let likely = ["a", "b", "c", "d", "arr", "o"];
    let name = if rng.random_bool(0.85) { likely.choose(rng) } else { names.choose(rng) };
    (*name.unwrap()).to_owned()
}

fn fields(rng: &mut StdRng, depth: u32) -> Document {
    (0..rng.random_range(0..5)).map(|_| (field(rng), value(rng, depth))).collect()
}

/// A document without an `_id`; `arr` is mostly an array and `o` mostly an object.
pub fn document(rng: &mut StdRng) -> Document {
    let mut document = fields(rng, 3);
    if rng.random_bool(0.7) {
        let items: Vec<Bson> = (0..rng.random_range(0..6)).map(|_| value(rng, 1)).collect();
        document.insert("arr", items);
    }
    if rng.random_bool(0.7) {
        document.insert("o", fields(rng, 2));
    }
    document
}

/// A path into such a document.
fn path(rng: &mut StdRng) -> String {
    let plain = [
        "a", "b", "c", "d", "o.a", "o.b", "o.c", "o.d.a", "arr.0", "arr.1", "arr.2.a", "arr.7",
        "o.0",
    ];
    (*plain.choose(rng).unwrap()).to_owned()
}

/// One update, as `u` of an update statement. Some will be refused by the server.
pub fn update(rng: &mut StdRng) -> Bson {
    let operator =
        |name: &str, path: String, value: Bson| Bson::Document(doc! { name: { path: value } });
    match rng.random_range(0..40) {
        20 => operator("$min", path(rng), value(rng, 1)),
        21 => operator("$max", path(rng), value(rng, 1)),
        22 => operator("$mul", path(rng), Bson::Double(1.5)),
        23 => operator("$bit", path(rng), Bson::Document(doc! { "xor": 5 })),
        24 => operator("$currentDate", path(rng), Bson::Boolean(true)),
        25 => operator("$addToSet", "arr".into(), value(rng, 1)),
        26 => {
            let each: Vec<Bson> = (0..3).map(|_| value(rng, 0)).collect();
            operator("$addToSet", "arr".into(), Bson::Document(doc! { "$each": each }))
        }
        27 => {
            let all: Vec<Bson> = (-5..5).map(Bson::Int32).collect();
            operator("$pullAll", "arr".into(), Bson::Array(all))
        }
        28 => {
            let sorted = doc! { "$each": [value(rng, 0), value(rng, 0)], "$sort": -1 };
            operator("$push", "arr".into(), Bson::Document(sorted))
        }
        29 => Bson::Document(
            doc! { "$set": { path(rng): 1 }, "$setOnInsert": { "new": 1 }, "$unset": { "z": 1 } },
        ),
        // With the filter that `statement` gives to all that name it.
        30 => operator("$set", "arr.$[e]".into(), value(rng, 1)),
        31 => operator("$unset", "arr.$[e]".into(), Bson::Int32(1)),
        32 => operator("$inc", "arr.$[e]".into(), Bson::Int64(1 << 40)),
        33 => operator("$set", "arr.$[f].a".into(), value(rng, 1)),
        // The first that the condition meets which `statement` gives to all that name it.
        34 => operator("$set", "arr.$".into(), value(rng, 1)),
        35 => {
            let sorted = doc! {
                "$each": [value(rng, 1), value(rng, 1)], "$position": 1, "$sort": { "a": 1 },
                "$slice": rng.random_range(1..6),
            };
            operator("$push", "arr".into(), Bson::Document(sorted))
        }
        36 => {
            let bits = *["and", "or"].choose(rng).unwrap();
            operator("$bit", path(rng), Bson::Document(doc! { bits: 6_i64 }))
        }
        37 => {
            let of_a_kind = doc! { "$type": "timestamp" };
            operator("$currentDate", path(rng), Bson::Document(of_a_kind))
        }
        38 => {
            let step: Decimal128 = "0.10".parse().unwrap();
            operator("$inc", path(rng), Bson::Decimal128(step))
        }
        39 => {
            let of_document = doc! { "a": { "$exists": true } };
            operator("$pull", "arr".into(), Bson::Document(of_document))
        }
        0..4 => operator("$set", path(rng), value(rng, 2)),
        4 => Bson::Document(
            doc! { "$set": { path(rng): value(rng, 1), path(rng): value(rng, 1), "z": 1, "y": 2 } },
        ),
        5 | 6 => operator("$unset", path(rng), Bson::Int32(1)),
        7 => operator("$inc", path(rng), Bson::Int32(1)),
        8 | 9 => operator("$push", "arr".into(), value(rng, 1)),
        10 => {
            let each: Vec<Bson> = (0..3).map(|_| value(rng, 1)).collect();
            let slice = rng.random_range(-4..5);
            operator("$push", "arr".into(), Bson::Document(doc! { "$each": each, "$slice": slice }))
        }
        11 => {
            let at = rng.random_range(0..3);
            operator(
                "$push",
                "arr".into(),
                Bson::Document(doc! { "$each": [value(rng, 1)], "$position": at }),
            )
        }
        12 => operator("$pop", "arr".into(), Bson::Int32(if rng.random() { 1 } else { -1 })),
        13 => operator("$pull", "arr".into(), Bson::Document(doc! { "$gte": 0 })),
        14 => operator(
            "$rename",
            path(rng),
            Bson::String(["a", "b", "n", "o.n"].choose(rng).unwrap().to_string()),
        ),
        15 => operator("$set", "arr.$[].a".into(), value(rng, 1)),
        16 => Bson::Array(vec![Bson::Document(doc! { "$unset": field_for_pipeline(rng) })]),
        17 => Bson::Array(vec![
            Bson::Document(doc! { "$unset": field_for_pipeline(rng) }),
            Bson::Document(
                doc! { "$set": { field_for_pipeline(rng): value(rng, 1), "moved": "$a" } },
            ),
        ]),
        18 => {
            // Moves fields to the end, changed and unchanged: what an `updateDescription` hides.
            let moved = doc! { "$arrayToObject": { "$reverseArray": { "$objectToArray": "$o" } } };
            Bson::Array(vec![Bson::Document(doc! { "$set": { "o": moved, "b": value(rng, 1) } })])
        }
        _ => Bson::Array(vec![Bson::Document(doc! { "$replaceWith": { "$mergeObjects": [
            { "_id": "$_id", field_for_pipeline(rng): value(rng, 1) }, "$$ROOT", { "c": "$d" }
        ] } })]),
    }
}

/// A whole update statement for what `q` finds.
pub fn statement(q: Document, rng: &mut StdRng) -> Document {
    let u = update(rng);
    let named = format!("{u:?}");
    let mut statement = doc! { "q": q, "u": u };
    if named.contains("$[e]") {
        statement.insert("arrayFilters", [doc! { "e": { "$gte": rng.random_range(-5..5) } }]);
    } else if named.contains("$[f]") {
        statement.insert("arrayFilters", [doc! { "f.a": { "$exists": rng.random::<bool>() } }]);
    } else if named.contains("arr.$\"") {
        let found = doc! { "$gte": rng.random_range(-5..5) };
        statement.get_document_mut("q").expect("it was put there").insert("arr", found);
    } else {
        statement.insert("upsert", rng.random_bool(0.2));
    }
    statement
}

fn field_for_pipeline(rng: &mut StdRng) -> String {
    (*["a", "b", "c", "d", "arr", "o", "o.a"].choose(rng).unwrap()).to_owned()
}

/// Several changes of one collection that come all, or not at all.
async fn transaction(
    collection: &Collection<Document>,
    rng: &mut StdRng,
) -> mongodb::error::Result<()> {
    let mut session = collection.client().start_session().await?;
    session.start_transaction().await?;
    for _ in 0..rng.random_range(1..5) {
        let (id, mut new) = (id(rng), document(rng));
        let one = doc! { "_id": { "$eq": id.clone() } };
        new.insert("_id", id);
        match rng.random_range(0..4) {
            0 => {
                collection.insert_one(new).session(&mut session).await?;
            }
            1 => {
                collection.delete_one(one).session(&mut session).await?;
            }
            2 => {
                new.remove("_id");
                collection.replace_one(one, new).upsert(true).session(&mut session).await?;
            }
            _ => {
                let set = doc! { "$set": { "o.t": value(rng, 1) }, "$push": { "log": 1 } };
                collection.update_one(one, set).session(&mut session).await?;
            }
        }
    }
    if rng.random_bool(0.25) {
        session.abort_transaction().await
    } else {
        session.commit_transaction().await
    }
}

/// Makes one random change to a random document; what the server refuses changes nothing, and is `false`.
pub async fn change(
    collection: &Collection<Document>,
    rng: &mut StdRng,
) -> mongodb::error::Result<bool> {
    let filter = doc! { "_id": { "$eq": id(rng) } };
    let result = match rng.random_range(0..11) {
        10 => transaction(collection, rng).await,
        0..3 => {
            let mut document = document(rng);
            document.insert("_id", filter.get_document("_id").unwrap().get("$eq").unwrap().clone());
            collection.insert_one(document).await.map(|_| ())
        }
        3 => collection.delete_one(filter).await.map(|_| ()),
        4 => {
            let id = filter.get_document("_id").unwrap().get("$eq").unwrap().clone();
            let delete = collection.delete_one(filter).await;
            let mut document = document(rng);
            document.insert("_id", id);
            delete.and(collection.insert_one(document).await.map(|_| ()))
        }
        5 => collection.replace_one(filter, document(rng)).upsert(true).await.map(|_| ()),
        _ => {
            let updates = [statement(filter, rng)];
            let command = doc! { "update": collection.name(), "updates": updates };
            let db = collection.client().database(&collection.namespace().db);
            match db.run_command(command).await {
                // The command is answered with `ok`, whatever became of its statement.
                Ok(reply) if reply.contains_key("writeErrors") => return Ok(false),
                answer => answer.map(|_| ()),
            }
        }
    };
    match result {
        Err(error) if is_refusal(&error) => Ok(false),
        result => result.map(|()| true),
    }
}

/// The server answered, with a no.
pub fn is_refusal(error: &mongodb::error::Error) -> bool {
    use mongodb::error::ErrorKind;
    matches!(
        error.kind.as_ref(),
        ErrorKind::Command(_)
            | ErrorKind::Write(_)
            | ErrorKind::InsertMany(_)
            | ErrorKind::BsonSerialization(_)
            | ErrorKind::InvalidArgument { .. }
            // It quotes a text, which the server has cut within a letter.
            | ErrorKind::Bson(_)
    )
}

/// The collections that a random workload works on.
pub fn collections(client: &Client) -> [Collection<Document>; 3] {
    ["shop.orders", "shop.customers", "crm.people"].map(|name| {
        let (db, collection) = name.split_once('.').unwrap();
        client.database(db).collection(collection)
    })
}
