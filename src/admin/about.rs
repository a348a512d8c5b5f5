//! Which agent this is, for whoever has several pages open: its machine, and what it replicates from where to where.

use serde::Serialize;

use crate::{
    agent::Handles,
    config::{SourceKind, TargetKind, Uri},
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct About {
    host: String,
    /// The name of the local replica set, and a host of it.
    local_set: String,
    local: String,
    /// Atlas's cluster, or the address of PostgreSQL.
    atlas: String,
    /// Empty: all of them.
    databases: Vec<String>,
    /// Where whoever needs the token finds it.
    token_file: String,
}

impl About {
    pub(super) fn of(handles: &Handles) -> Self {
        let config = &handles.config;
        let cluster = |uri: &Option<Uri>| {
            uri.as_ref().and_then(|uri| uri.hosts().next().map(cluster)).unwrap_or_default()
        };
        let include = config.filter().map(|filter| filter.patterns().include.clone());
        let token_file = &config.admin.token_file;
        let token_file = std::path::absolute(token_file).unwrap_or_else(|_| token_file.clone());
        Self {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            local_set: handles.local_set.to_string(),
            local: match config.source.kind {
                SourceKind::Mongodb => cluster(&config.local.uri),
                SourceKind::Outbox => {
                    config.outbox.uri.as_ref().map(ToString::to_string).unwrap_or_default()
                }
            },
            atlas: match config.target.kind {
                TargetKind::Atlas => cluster(&config.atlas.uri),
                TargetKind::Postgres => {
                    config.postgres.uri.as_ref().map(ToString::to_string).unwrap_or_default()
                }
            },
            databases: databases(&include.unwrap_or_default()),
            token_file: token_file.display().to_string(),
        }
    }
}

/// A host as people call its cluster: one of Atlas's shards has a number in its name, and a port that says nothing.
fn cluster(host: &str) -> String {
    let Some((name, rest)) = host.split_once('.').filter(|(_, rest)| rest.contains("mongodb.net"))
    else {
        return host.to_owned();
    };
    let name = name.split_once("-shard-").map_or(name, |(name, _)| name);
    let domain = rest.split(':').next().unwrap_or(rest);
    format!("{name}.{domain}")
}

/// The databases that patterns name, in their order, each once.
fn databases(include: &[String]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for pattern in include {
        let db = pattern.split('.').next().unwrap_or(pattern);
        if !found.iter().any(|known| known == db) {
            found.push(db.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_called_as_its_owners_do() {
        assert_eq!(cluster("cluster0.ab1cd.mongodb.net"), "cluster0.ab1cd.mongodb.net");
        assert_eq!(cluster("shop-shard-00-01.ab1cd.mongodb.net:27017"), "shop.ab1cd.mongodb.net");
        assert_eq!(cluster("127.0.0.1:27018"), "127.0.0.1:27018");
        assert_eq!(cluster("db1.example.com:27017"), "db1.example.com:27017");
    }

    #[test]
    fn a_database_is_named_once_whatever_is_chosen_of_it() {
        let include = ["shop.orders", "shop.customers", "crm.*"].map(str::to_owned);
        assert_eq!(databases(&include), ["shop", "crm"]);
    }
}
