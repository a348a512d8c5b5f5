//! Lets a server hash, so that only numbers cross the line.
//!
//! Of each document the server takes `$toHashedIndexKey` of all of it and `$bsonSize`; of a range, the sums.

use bson::{RawArrayBuf, RawBsonRef, RawDocumentBuf, rawdoc};

use crate::{
    model::{checkpoint::ClusterTime, document_key::DocumentKey, namespace::Namespace},
    mongo::{Mongo, MongoError, documents, majority_after},
    side::{Digest, Digests, KeyRange},
};

/// Two primes below 2^31: the sums of two remainders of the 64-bit hash fit a long for 2^32 documents.
const MODULI: [i64; 2] = [2_147_483_647, 2_147_483_629];

/// See [`Side::digests`](crate::side::Side::digests).
pub(super) async fn digests(
    mongo: &Mongo,
    ns: &Namespace,
    range: &KeyRange,
    splits: &[DocumentKey],
    after: ClusterTime,
) -> Result<Digests, MongoError> {
    let command = rawdoc! {
        "aggregate": ns.coll(), "pipeline": pipeline(range, splits),
        "hint": { "_id": 1 }, "cursor": {}, "readConcern": majority_after(after),
    };
    match sums(mongo, ns, command, splits.len() + 1).await {
        Err(error) if is_unknown_expression(&error) => Ok(Digests::Unable),
        sums => Ok(Digests::Sums(sums?)),
    }
}

async fn sums(
    mongo: &Mongo,
    ns: &Namespace,
    command: RawDocumentBuf,
    parts: usize,
) -> Result<Vec<Digest>, MongoError> {
    let mut sums = vec![Digest::default(); parts];
    let mut cursor = mongo.cursor(ns.db(), command).await?;
    while let Some(reply) = cursor.next().await? {
        for group in documents(&reply)? {
            let field = |name| number(group.get(name).ok().flatten());
            let part = field("_id").and_then(|part| usize::try_from(part).ok());
            let Some(sum) = part.and_then(|part| sums.get_mut(part)) else { continue };
            let amount = |name| field(name).unwrap_or(0);
            *sum = Digest {
                documents: amount("n") as u64,
                bytes: amount("bytes") as u64,
                hashes: [amount("a"), amount("b")],
            };
        }
    }
    Ok(sums)
}

/// "Unrecognized expression": a server before `$toHashedIndexKey`.
fn is_unknown_expression(error: &MongoError) -> bool {
    matches!(error.code(), Some(168 | 31325))
}

/// The condition of an aggregation for a range. `$expr` compares across types, and uses the index.
fn to_match(range: &KeyRange) -> RawDocumentBuf {
    let mut both = RawArrayBuf::new();
    for (operator, key) in [("$gte", &range.from), ("$lt", &range.until)] {
        if let Some(key) = key {
            both.push(compare_id(operator, key));
        }
    }
    rawdoc! { "$expr": { "$and": both } }
}

/// `{operator: ["$_id", {$literal: key}]}`. Built from undecoded bytes: a key may be no UTF-8.
fn compare_id(operator: &str, key: &DocumentKey) -> RawDocumentBuf {
    use crate::model::raw::{Builder, elements, kind};
    let mut literal = Builder::default();
    for element in elements(key.filter()).flatten() {
        literal.push(element.kind, "$literal", element.value);
    }
    let mut operands = Builder::default();
    let field = rawdoc! { "0": "$_id" };
    for element in elements(&field).flatten() {
        operands.push(element.kind, element.name, element.value);
    }
    operands.push(kind::DOCUMENT, "1", literal.finish().as_bytes());
    let mut comparison = Builder::default();
    comparison.push(kind::ARRAY, operator, operands.finish().as_bytes());
    comparison.finish()
}

fn pipeline(range: &KeyRange, splits: &[DocumentKey]) -> RawArrayBuf {
    let mut branches = RawArrayBuf::new();
    for (part, split) in splits.iter().enumerate() {
        branches.push(rawdoc! { "case": compare_id("$lt", split), "then": part as i64 });
    }
    let last = splits.len() as i64;
    let mut group = RawDocumentBuf::new();
    if splits.is_empty() {
        group.append(bson::raw::cstr!("_id"), rawdoc! { "$literal": 0_i64 });
    } else {
        group.append(
            bson::raw::cstr!("_id"),
            rawdoc! { "$switch": { "branches": branches, "default": last } },
        );
    }
    group.append(bson::raw::cstr!("n"), rawdoc! { "$sum": 1_i64 });
    group.append(bson::raw::cstr!("bytes"), rawdoc! { "$sum": { "$bsonSize": "$$ROOT" } });
    for (name, modulus) in [(bson::raw::cstr!("a"), MODULI[0]), (bson::raw::cstr!("b"), MODULI[1])]
    {
        let mut operands = RawArrayBuf::new();
        operands.push(rawdoc! { "$toHashedIndexKey": "$$ROOT" });
        operands.push(modulus);
        group.append(name, rawdoc! { "$sum": { "$mod": operands } });
    }
    let mut stages = RawArrayBuf::new();
    if !range.is_all() {
        stages.push(rawdoc! { "$match": to_match(range) });
    }
    stages.push(rawdoc! { "$group": group });
    stages
}

fn number(value: Option<RawBsonRef<'_>>) -> Option<i64> {
    match value? {
        RawBsonRef::Int32(n) => Some(n.into()),
        RawBsonRef::Int64(n) => Some(n),
        RawBsonRef::Double(n) => Some(n as i64),
        _ => None,
    }
}
