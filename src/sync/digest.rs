//! The comparison that lets both servers hash: only numbers cross the line where a range is equal.
//!
//! Of each document the server takes `$toHashedIndexKey` of all of it and `$bsonSize`; of a range, the sums.
//! Where the sums of both sides differ, the range is cut by keys that the local side tells, hashed again,
//! and so on down to a few documents, which are then compared byte for byte.
//!
//! It is blind where the hash is: numbers count by their integer part (1.2 and 1.7 hash alike, seen on
//! 6.0.5), and whatever their type as long as the size is the same (a double 5.0 and a long 5). A test
//! shows both.

use bson::{RawArrayBuf, RawBsonRef, RawDocumentBuf, rawdoc};

use super::{
    SyncError,
    compare::{Compared, Comparison, Findings},
    ends::End,
    range::{KeyRange, Order, Part, Route, Walk, compare_id, malformed},
};
use crate::{
    model::{checkpoint::ClusterTime, document_key::DocumentKey},
    mongo::{MongoError, documents, majority_after},
};

/// So few documents are compared byte for byte: hashing them again would cost more than sending them.
const LEAF_DOCUMENTS: u64 = 64;

/// Into how many parts a range that differs is cut.
const PARTS: u64 = 32;

/// Two primes below 2^31: the sums of two remainders of the 64-bit hash fit a long for 2^32 documents.
const MODULI: [i64; 2] = [2_147_483_647, 2_147_483_629];

impl Digest {
    /// Equal to no other.
    const UNKNOWN: Self = Self { documents: u64::MAX, bytes: 0, hashes: [0; 2] };
}

/// The sums of one range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Digest {
    documents: u64,
    bytes: u64,
    hashes: [i64; 2],
}

impl Comparison<'_> {
    /// Compares a range by hashes; what differs is compared exactly.
    ///
    /// # Errors
    /// As [`range`](Self::range); [`SyncError::NoDigest`] where a server cannot hash.
    pub async fn digest<F: Findings>(
        &self,
        range: &KeyRange,
        expected: u64,
        findings: &F,
    ) -> Result<(), SyncError> {
        let (here, there) = self.digests(range, &[], expected).await?;
        let mut open = Vec::new();
        self.settle(range.clone(), here[0], there[0], &mut open, findings).await?;
        while let Some((range, documents)) = open.pop() {
            let splits = match documents {
                0..=LEAF_DOCUMENTS => Vec::new(),
                _ => self.inner_splits(&range, documents).await?,
            };
            if splits.is_empty() {
                // Where the local side has nothing, the keys are all there is to know.
                let part = if documents == 0 { Part::Key } else { Part::Whole };
                self.range(&range, part, findings).await?;
                continue;
            }
            let (here, there) = self.digests(&range, &splits, documents).await?;
            let sums = here.into_iter().zip(there);
            for (part, (here, there)) in cut(&range, &splits).into_iter().zip(sums) {
                self.settle(part, here, there, &mut open, findings).await?;
            }
        }
        Ok(())
    }

    /// Ends a range whose sums are equal; leaves another one to be opened.
    async fn settle<F: Findings>(
        &self,
        range: KeyRange,
        here: Digest,
        there: Digest,
        open: &mut Vec<(KeyRange, u64)>,
        findings: &F,
    ) -> Result<(), SyncError> {
        if here != there {
            open.push((range, here.documents));
            return Ok(());
        }
        let compared = Compared {
            local_documents: here.documents,
            atlas_documents: there.documents,
            bytes: here.bytes,
            found: Vec::new(),
        };
        findings.compared(compared).await
    }

    /// Keys of the local side that cut a range.
    async fn inner_splits(
        &self,
        range: &KeyRange,
        documents: u64,
    ) -> Result<Vec<DocumentKey>, SyncError> {
        let each = documents.div_ceil(PARTS).max(1);
        let route = Route {
            ns: self.ns.clone(),
            range: range.clone(),
            part: Part::Key,
            order: Order::ById,
            after: self.after,
            page: 10_000,
        };
        let mut walk = Walk::new(&self.ends.local, route);
        let (mut keys, mut n) = (Vec::new(), 0);
        while let Some(page) = walk.advance(self.ends, End::Local, self.stop).await? {
            let local = |error| End::Local.error(error);
            let documents = page.documents().map_err(local)?;
            self.ends.book(documents.len() / KEYS_PER_READ, self.stop).await?;
            for document in documents {
                n += 1;
                if n % each == 0 {
                    keys.push(DocumentKey::of(document).map_err(|error| local(malformed(error)))?);
                }
            }
        }
        keys.dedup_by_key(|key| key.canonical());
        Ok(keys)
    }

    /// The sums of each part of a range, of both sides.
    async fn digests(
        &self,
        range: &KeyRange,
        splits: &[DocumentKey],
        local_documents: u64,
    ) -> Result<(Vec<Digest>, Vec<Digest>), SyncError> {
        loop {
            self.ends.book(local_documents as usize, self.stop).await?;
            let permit = self.ends.proven(self.stop).await?;
            let both = tokio::try_join!(
                self.digests_of(End::Local, range, splits),
                self.digests_of(End::Atlas, range, splits)
            )?;
            if permit.holds() {
                return Ok(both);
            }
        }
    }

    async fn digests_of(
        &self,
        end: End,
        range: &KeyRange,
        splits: &[DocumentKey],
    ) -> Result<Vec<Digest>, SyncError> {
        let mongo = self.ends.of(end);
        let after = if end == End::Local { self.after } else { ClusterTime::default() };
        let command = || {
            rawdoc! {
                "aggregate": self.ns.coll(), "pipeline": pipeline(range, splits),
                "hint": { "_id": 1 }, "cursor": {}, "readConcern": majority_after(after),
            }
        };
        let exchange = || async {
            let mut sums = vec![Digest::default(); splits.len() + 1];
            let mut cursor = mongo.cursor(self.ns.db(), command()).await?;
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
            Ok::<_, MongoError>(sums)
        };
        let mut attempts = self.ends.attempts(self.stop);
        loop {
            match exchange().await {
                Ok(sums) => return Ok(sums),
                Err(error) if is_unknown_expression(&error) => {
                    return Err(SyncError::NoDigest { end });
                }
                // Atlas may hold far more in the range than the local side: in smaller parts, or exactly.
                Err(MongoError::Silent(_)) if end == End::Atlas => {
                    return Ok(vec![Digest::UNKNOWN; splits.len() + 1]);
                }
                Err(error) => attempts.failed(end.error(error)).await?,
            }
        }
    }
}

/// A key from the index costs the local server about a quarter of a document.
const KEYS_PER_READ: usize = 4;

/// "Unrecognized expression": a server before `$toHashedIndexKey`.
fn is_unknown_expression(error: &MongoError) -> bool {
    matches!(error.code(), Some(168 | 31325))
}

fn cut(range: &KeyRange, splits: &[DocumentKey]) -> Vec<KeyRange> {
    let mut parts = KeyRange::between(splits);
    if let Some(first) = parts.first_mut() {
        first.from.clone_from(&range.from);
    }
    if let Some(last) = parts.last_mut() {
        last.until.clone_from(&range.until);
    }
    parts
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
        stages.push(rawdoc! { "$match": range.to_match() });
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
