//! The comparison that lets both servers hash: only numbers cross the line where a range is equal.
//!
//! Of each document the server takes `$toHashedIndexKey` of all of it and `$bsonSize`; of a range, the sums.
//! Where the sums of both sides differ, the range is cut by keys that the local side tells, hashed again,
//! and so on down to a few documents, which are then compared byte for byte.
//!
//! It is blind where the hash is: numbers count by their integer part (1.2 and 1.7 hash alike, seen on
//! 6.0.5), and whatever their type as long as the size is the same (a double 5.0 and a long 5). A test
//! shows both.

use super::{
    SyncError,
    compare::{Compared, Comparison, Findings},
    range::PatientWalk,
    sides::{SideName, ask},
};
use crate::{
    model::{checkpoint::ClusterTime, document_key::DocumentKey},
    side::{Digest, Digests, KeyRange, Order, Part, Route},
};

/// So few documents are compared byte for byte: hashing them again would cost more than sending them.
const LEAF_DOCUMENTS: u64 = 64;

/// Into how many parts a range that differs is cut.
const PARTS: u64 = 32;

/// Equal to no other.
const UNKNOWN: Digest = Digest { documents: u64::MAX, bytes: 0, hashes: [0; 2] };

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
        let (source, target) = self.digests(range, &[], expected).await?;
        let mut open = Vec::new();
        self.compare_sums(range.clone(), source[0], target[0], &mut open, findings).await?;
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
            let (source, target) = self.digests(&range, &splits, documents).await?;
            let sums = source.into_iter().zip(target);
            for (part, (source, target)) in cut(&range, &splits).into_iter().zip(sums) {
                self.compare_sums(part, source, target, &mut open, findings).await?;
            }
        }
        Ok(())
    }

    /// Ends a range whose sums are equal; leaves another one to be opened.
    async fn compare_sums<F: Findings>(
        &self,
        range: KeyRange,
        source: Digest,
        target: Digest,
        open: &mut Vec<(KeyRange, u64)>,
        findings: &F,
    ) -> Result<(), SyncError> {
        if source != target {
            open.push((range, source.documents));
            return Ok(());
        }
        let compared = Compared {
            local_documents: source.documents,
            atlas_documents: target.documents,
            bytes: source.bytes,
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
        let mut walk = PatientWalk::new(self.sides, SideName::Local, route, self.stop);
        let (mut keys, mut n, mut unpaid) = (Vec::new(), 0, 0);
        while let Some(page) = walk.next().await? {
            let documents = page.documents()?;
            unpaid += documents.len();
            self.sides.throttle(unpaid / KEYS_PER_READ, self.stop).await?;
            unpaid %= KEYS_PER_READ;
            for document in documents {
                n += 1;
                if n % each == 0 {
                    keys.push(self.key_of(SideName::Local, document)?);
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
            self.sides.throttle(local_documents as usize, self.stop).await?;
            let permit = self.sides.proven(self.stop).await?;
            let both = tokio::try_join!(
                self.digests_of(SideName::Local, range, splits),
                self.digests_of(SideName::Atlas, range, splits)
            )?;
            if permit.holds() {
                return Ok(both);
            }
        }
    }

    async fn digests_of(
        &self,
        end: SideName,
        range: &KeyRange,
        splits: &[DocumentKey],
    ) -> Result<Vec<Digest>, SyncError> {
        let after = if end == SideName::Local { self.after } else { ClusterTime::default() };
        let side = self.sides.of(end);
        match ask!(self.sides, self.stop, side.digests(self.ns, range, splits, after)) {
            Digests::Sums(sums) => Ok(sums),
            Digests::TooLong => Ok(vec![UNKNOWN; splits.len() + 1]),
            Digests::Unable => Err(SyncError::NoDigest { end }),
        }
    }
}

/// A key from the index costs the local server about a quarter of a document.
const KEYS_PER_READ: usize = 4;

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
