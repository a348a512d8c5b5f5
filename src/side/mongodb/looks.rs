//! What a server tells of itself.

use bson::{Bson, Document};

use super::Role;
use crate::{
    mongo::{Mongo, MongoError, class, process_of},
    side::{Looks, SideError},
    source::{Cause, SourceError, SourceInfo, is_router, refuse_router, source_id},
};

/// Of a source, which must be no router, or of a target.
pub(super) async fn looks(mongo: &Mongo, role: Role) -> Result<Looks, SideError> {
    let failed = |error| role.error(error);
    let hello = mongo.hello().await.map_err(failed)?;
    if role == Role::Source {
        refuse_router(&hello)?;
    }
    from_answers(&hello, mongo).await.map_err(failed)
}

async fn from_answers(hello: &Document, mongo: &Mongo) -> Result<Looks, MongoError> {
    let mut looks = from_hello(hello);
    let Some(set_name) = looks.set_name.clone() else { return Ok(looks) };
    let info = SourceInfo { set_name, ..SourceInfo::default() };
    looks.set_id = match source_id(mongo, &info).await {
        Ok((id, is_exact)) => is_exact.then_some(id),
        // Atlas has one code for whatever its proxy does not pass on.
        Err(SourceError::Unavailable(Cause::Mongo(error)))
            if error.code() != Some(class::ATLAS_ERROR) =>
        {
            return Err(error);
        }
        Err(_) => None,
    };
    Ok(looks)
}

fn from_hello(hello: &Document) -> Looks {
    let set_name = hello.get_str("setName").ok().or(is_router(hello).then_some("mongos"));
    let lists = ["hosts", "passives", "arbiters"].into_iter();
    let listed = lists.filter_map(|list| hello.get_array(list).ok()).flatten();
    let me = hello.get("me");
    Looks {
        set_id: None,
        set_name: set_name.map(str::to_owned),
        members: listed.chain(me).filter_map(Bson::as_str).map(str::to_lowercase).collect(),
        process: process_of(hello),
    }
}

#[cfg(test)]
mod tests {
    use bson::{doc, oid::ObjectId};

    use super::*;

    #[test]
    fn a_server_is_known_by_its_set_its_members_and_its_process() {
        let process = ObjectId::from_bytes([1; 12]);
        let looks = from_hello(&doc! {
            "setName": "rs0", "hosts": ["DB1:27017"], "arbiters": ["db2:27017"],
            "topologyVersion": { "processId": process },
        });

        assert_eq!(looks.set_name.as_deref(), Some("rs0"));
        assert_eq!(looks.process, Some(process));
        assert!(looks.members.iter().eq(["db1:27017", "db2:27017"]), "whatever the capitals");
    }
}
