//! The side of a target that nobody can look into.

use std::collections::HashMap;

use bson::{RawDocument, RawDocumentBuf};
use futures_util::future::ready;

use super::{Answer, Listing, Page, Place, Route, Side, SideError, Size, Walk};
use crate::{
    gate::Permit,
    model::{
        checkpoint::ClusterTime,
        document_key::DocumentKey,
        namespace::{Namespace, NamespaceFilter},
        raw::Malformed,
    },
    schema::Description,
    sink::SinkError,
};

/// To whoever compares it, it holds nothing, so that each full sync gives it everything there is.
pub struct Blind;

fn told<'a, T: Send + 'a>(answer: T) -> Answer<'a, T> {
    Box::pin(ready(Ok(answer)))
}

impl Side for Blind {
    fn now(&self) -> Answer<'_, ClusterTime> {
        told(ClusterTime::default())
    }

    fn list<'a>(&'a self, _: &'a NamespaceFilter) -> Answer<'a, Listing> {
        told(Listing::default())
    }

    fn describe_options<'a>(&'a self, _: &'a Namespace) -> Answer<'a, Option<Description>> {
        told(None)
    }

    fn size<'a>(&'a self, _: &'a Namespace) -> Answer<'a, Size> {
        told(Size::default())
    }

    fn is_empty<'a>(&'a self, _: &'a Namespace) -> Answer<'a, bool> {
        told(true)
    }

    fn estimated_count<'a>(&'a self, _: &'a Namespace) -> Answer<'a, u64> {
        told(0)
    }

    fn count<'a>(
        &'a self,
        _: &'a Namespace,
        _: Option<&'a RawDocument>,
    ) -> Answer<'a, Option<u64>> {
        told(None)
    }

    fn sample<'a>(&'a self, _: &'a Namespace, _: u64) -> Answer<'a, Vec<DocumentKey>> {
        told(Vec::new())
    }

    fn walk(&self, _: Route) -> Box<dyn Walk + '_> {
        Box::new(Nowhere)
    }

    fn find<'a>(
        &'a self,
        _: &'a Namespace,
        _: &'a [DocumentKey],
    ) -> Answer<'a, HashMap<Vec<u8>, RawDocumentBuf>> {
        told(HashMap::new())
    }

    fn malformed(&self, error: Malformed) -> SideError {
        SinkError::Rejected(error.to_string()).into()
    }
}

/// Has no page.
struct Nowhere;

impl Walk for Nowhere {
    fn next(&mut self) -> Answer<'_, Option<Page>> {
        told(None)
    }

    fn permit(&self) -> Permit {
        Permit::free()
    }

    fn go_back(&mut self, _: &Place) {}
}
