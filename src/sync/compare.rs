//! The comparison of one range: raw bytes against raw bytes.
//!
//! The local side is walked in `_id` order, page by page; what Atlas has between the first key of a page
//! and the first of the next is compared with it. So each side is read once, nothing is compared but for
//! equality, and memory is bounded by a page, however much either side has.
//!
//! What is found are keys, never contents: whoever repairs reads the document again, so that a document
//! which changes while it is compared is never put back to an older state.

use std::collections::HashMap;

use bson::{RawDocument, RawDocumentBuf};

use super::{
    SyncError,
    range::PatientWalk,
    sides::{SideName, Sides},
};
use crate::{
    gate::Permit,
    model::{checkpoint::ClusterTime, document_key::DocumentKey, namespace::Namespace},
    runtime::shutdown::Stop,
    side::{KeyRange, Order, Part, Route, Side},
};

/// How a document differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// Atlas does not have it.
    Missing,
    /// Only Atlas has it.
    Extra,
    /// Both have it, with other bytes.
    Content,
}

/// What a part of a comparison found.
#[derive(Debug, Default)]
pub struct Compared {
    pub local_documents: u64,
    pub atlas_documents: u64,
    /// Bytes of the local documents.
    pub bytes: u64,
    pub found: Vec<(Mismatch, DocumentKey)>,
}

/// Takes what a comparison finds.
pub trait Findings: Sync {
    /// A part was compared: at most a page of the local side, and what Atlas has beside it.
    fn compared(&self, part: Compared) -> impl Future<Output = Result<(), SyncError>> + Send;
}

/// One collection on both sides.
pub struct Comparison<'a> {
    pub sides: &'a Sides,
    pub ns: &'a Namespace,
    /// Local reads show no older state.
    pub after: ClusterTime,
    /// The local database has no collection of the name. A view may have it, through which others' documents would be
    /// read, or a time series.
    pub is_only_in_target: bool,
    /// The two sides walk it in different orders: each is asked for the keys of the other.
    pub by_key: bool,
    /// Documents in a reply.
    pub page: u32,
    pub stop: &'a Stop,
}

/// Most findings that are handed over at once.
const FOUND_MAX: usize = 1_000;

impl Comparison<'_> {
    /// Compares a range: whole documents, or which there are.
    ///
    /// # Errors
    /// When an end stays away for longer than patience lasts, or refuses.
    pub async fn range<F: Findings>(
        &self,
        range: &KeyRange,
        part: Part,
        findings: &F,
    ) -> Result<(), SyncError> {
        if self.by_key && !self.is_only_in_target {
            return self.each_key(part, findings).await;
        }
        let route = self.route(range.clone(), part, self.after);
        let mut walk = PatientWalk::new(self.sides, SideName::Local, route, self.stop);
        let mut from = range.from.clone();
        // The last document of a page opens the next part, since its key is the bound between the two.
        let mut carried: Option<(RawDocumentBuf, Permit)> = None;
        loop {
            let page = if self.is_only_in_target { None } else { walk.next().await? };
            let rest = KeyRange { from: from.clone(), until: range.until.clone() };
            let again = || {
                let route = self.route(rest.clone(), part, self.after);
                PatientWalk::new(self.sides, SideName::Local, route, self.stop)
            };
            let Some(page) = page else {
                let permits = [Some(walk.permit()), carried.as_ref().map(|(_, of)| of.clone())];
                let last: Vec<&RawDocument> = carried.iter().map(|(last, _)| &**last).collect();
                if self.part(&last, &permits, rest.clone(), part, findings).await? {
                    return Ok(());
                }
                (walk, carried) = (again(), None);
                continue;
            };
            let documents = page.documents()?;
            self.sides.throttle(documents.len(), self.stop).await?;
            let Some((last, before)) = documents.split_last() else { continue };
            let bound = self.key_of(SideName::Local, last)?;
            let opened = carried.replace(((*last).to_owned(), page.permit().clone()));
            let permits = [Some(page.permit().clone()), opened.as_ref().map(|(_, of)| of.clone())];
            let opened = opened.iter().map(|(last, _)| &**last);
            let chunk: Vec<&RawDocument> = opened.chain(before.iter().copied()).collect();
            if chunk.is_empty() {
                continue; // A page of one: what is before it in Atlas is compared with the next.
            }
            let stretch = KeyRange { from: from.clone(), until: Some(bound.clone()) };
            if self.part(&chunk, &permits, stretch, part, findings).await? {
                from = Some(bound);
            } else {
                (walk, carried) = (again(), None);
            }
        }
    }

    /// Compares what the local side has in a stretch with what Atlas has there. False when one of the permits under
    /// which that was read holds no longer: the stretch is to be read again.
    async fn part<F: Findings>(
        &self,
        documents: &[&RawDocument],
        permits: &[Option<Permit>],
        stretch: KeyRange,
        part: Part,
        findings: &F,
    ) -> Result<bool, SyncError> {
        let hold = || permits.iter().flatten().all(Permit::holds);
        let mut compared =
            Compared { local_documents: documents.len() as u64, ..Compared::default() };
        let mut source: HashMap<Vec<u8>, (DocumentKey, &RawDocument)> =
            HashMap::with_capacity(documents.len());
        for document in documents {
            compared.bytes += document.as_bytes().len() as u64;
            let key = self.key_of(SideName::Local, document)?;
            source.insert(key.canonical(), (key, document));
        }
        let route = self.route(stretch, part, ClusterTime::default());
        let mut walk = PatientWalk::new(self.sides, SideName::Atlas, route, self.stop);
        while let Some(page) = walk.next().await? {
            let copies = page.documents()?;
            compared.atlas_documents += copies.len() as u64;
            for copy in copies {
                let key = self.key_of(SideName::Atlas, copy)?;
                match source.remove(&key.canonical()) {
                    None => compared.found.push((Mismatch::Extra, key)),
                    Some((_, document)) => {
                        let mismatch = self.mismatch(part, document, copy);
                        compared.found.extend(mismatch.map(|kind| (kind, key)));
                    }
                }
            }
            if compared.found.len() >= FOUND_MAX {
                if !hold() {
                    return Ok(false);
                }
                findings.compared(std::mem::take(&mut compared)).await?;
            }
        }
        compared.found.extend(source.into_values().map(|(key, _)| (Mismatch::Missing, key)));
        if !hold() {
            return Ok(false);
        }
        findings.compared(compared).await?;
        Ok(true)
    }

    /// How a copy that was found differs from its original, as far as that is looked at.
    pub(super) fn mismatch(
        &self,
        part: Part,
        original: &RawDocument,
        copy: &RawDocument,
    ) -> Option<Mismatch> {
        if part == Part::Key { None } else { mismatch(&*self.sides.atlas, original, copy) }
    }

    pub(super) fn key_of(
        &self,
        end: SideName,
        document: &RawDocument,
    ) -> Result<DocumentKey, SyncError> {
        DocumentKey::of(document).map_err(|error| self.sides.of(end).malformed(error).into())
    }

    pub(super) fn route(&self, range: KeyRange, part: Part, after: ClusterTime) -> Route {
        Route { ns: self.ns.clone(), range, part, order: Order::ById, after, page: self.page }
    }
}

/// How a copy that was found differs from its original.
pub(super) fn mismatch(
    atlas: &dyn Side,
    original: &RawDocument,
    copy: &RawDocument,
) -> Option<Mismatch> {
    let kind = if atlas.is_left_over(copy) { Mismatch::Missing } else { Mismatch::Content };
    (!atlas.is_copy(original, copy)).then_some(kind)
}

#[cfg(test)]
mod tests;
