//! The comparison of a whole collection that the two sides walk in different orders, as where a collation rules on one of
//! them: whoever walks asks the other side for the keys of each page.

use std::collections::HashMap;

use bson::{RawDocument, RawDocumentBuf};

use super::{
    SyncError,
    compare::{Compared, Comparison, Findings, Mismatch},
    range::PatientWalk,
    sides::{SideName, ask},
};
use crate::{
    model::{checkpoint::ClusterTime, document_key::DocumentKey},
    side::{KeyRange, Page, Part},
};

/// Keys that are asked for at once.
const ASKED: usize = 500;

impl Comparison<'_> {
    /// Compares all there is, whatever its order.
    pub(super) async fn each_key<F: Findings>(
        &self,
        part: Part,
        findings: &F,
    ) -> Result<(), SyncError> {
        let route = self.route(KeyRange::default(), part, self.after);
        let mut walk = PatientWalk::new(self.sides, SideName::Local, route, self.stop);
        while let Some(page) = walk.next().await? {
            self.sides.throttle(page.count(), self.stop).await?;
            let compared = self.missing(&page, part).await?;
            if page.permit().holds() {
                findings.compared(compared).await?;
            } else {
                walk.go_back_before(&page);
            }
        }
        let route = self.route(KeyRange::default(), Part::Key, ClusterTime::default());
        let mut walk = PatientWalk::new(self.sides, SideName::Atlas, route, self.stop);
        while let Some(page) = walk.next().await? {
            loop {
                let permit = self.sides.proven(self.stop).await?;
                let compared = self.extra(&page).await?;
                if permit.holds() {
                    findings.compared(compared).await?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// What the target lacks of a page of the source, and has otherwise.
    async fn missing(&self, page: &Page, part: Part) -> Result<Compared, SyncError> {
        let mut compared = Compared::default();
        for documents in page.documents()?.chunks(ASKED) {
            let keys = self.keys_of(SideName::Local, documents)?;
            let copies = self.find(SideName::Atlas, &keys).await?;
            compared.local_documents += documents.len() as u64;
            for (key, document) in keys.into_iter().zip(documents) {
                compared.bytes += document.as_bytes().len() as u64;
                match copies.get(&key.canonical()) {
                    None => compared.found.push((Mismatch::Missing, key)),
                    Some(copy) => {
                        let mismatch = self.mismatch(part, document, copy);
                        compared.found.extend(mismatch.map(|kind| (kind, key)));
                    }
                }
            }
        }
        Ok(compared)
    }

    /// What the source lacks of a page of the target.
    async fn extra(&self, page: &Page) -> Result<Compared, SyncError> {
        let mut compared = Compared::default();
        for documents in page.documents()?.chunks(ASKED) {
            let keys = self.keys_of(SideName::Atlas, documents)?;
            self.sides.throttle(keys.len(), self.stop).await?;
            let originals = self.find(SideName::Local, &keys).await?;
            compared.atlas_documents += documents.len() as u64;
            let only_there =
                keys.into_iter().filter(|key| !originals.contains_key(&key.canonical()));
            compared.found.extend(only_there.map(|key| (Mismatch::Extra, key)));
        }
        Ok(compared)
    }

    fn keys_of(
        &self,
        end: SideName,
        documents: &[&RawDocument],
    ) -> Result<Vec<DocumentKey>, SyncError> {
        documents.iter().map(|document| self.key_of(end, document)).collect()
    }

    async fn find(
        &self,
        end: SideName,
        keys: &[DocumentKey],
    ) -> Result<HashMap<Vec<u8>, RawDocumentBuf>, SyncError> {
        Ok(ask!(self.sides, self.stop, self.sides.of(end).find(self.ns, keys)))
    }
}
