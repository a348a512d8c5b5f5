//! Atlas: whether it can be written to.

use std::borrow::Cow;

use bson::{Document, rawdoc};

use super::{Report, check_options, check_skew, unchecked};
use crate::{
    agent::connect_atlas,
    cli::roles::databases,
    config::{Config, Uri},
    model::hint::Hint,
    mongo::Mongo,
    sink::{SinkError, classify::command_error},
    source::is_router,
};

pub(super) async fn check_atlas(config: &Config, lines: &mut Report) {
    check_options("atlas", config.atlas_uri(), lines);
    let mongo = match connect_atlas(config).await {
        Ok(mongo) => mongo,
        Err(error) => return lines.failure("atlas", error.into()),
    };
    let version = match mongo.version().await {
        Ok(version) => version,
        Err(error) => {
            let certain = error.hint().map(Cow::into_owned);
            let error = command_error(&error);
            let fix = certain.as_deref().unwrap_or(match &error {
                SinkError::Denied(_) => "check user and password, and TLS",
                _ => {
                    "check the network, the address, and in Atlas the list of permitted IP addresses; the agent starts without Atlas and catches up"
                }
            });
            return lines.problem("atlas", error.to_string(), fix);
        }
    };
    lines.ok("atlas", format!("MongoDB {version}"));
    if config.atlas.allow_insecure && !config.atlas_uri().is_ok_and(Uri::uses_tls) {
        lines.warning(
            "atlas",
            "the connection is not encrypted",
            "set `atlas.allow_insecure = false` and use TLS",
        );
    } else if config.atlas_uri().is_ok_and(Uri::trusts_anybody) {
        unchecked("atlas", lines);
    } else {
        lines.ok("atlas", "the connection is encrypted");
    }
    if mongo.hello().await.is_ok_and(|hello| is_router(&hello)) {
        lines.warning(
            "atlas",
            UNTRIED_ON_SHARDS,
            "take a cluster that is not sharded: Outrigger shards nothing itself",
        );
    }
    check_privileges(&mongo, config, lines).await;
    check_skew("atlas", &mongo, lines).await;
}

/// What no test has seen where Atlas is behind a router.
const UNTRIED_ON_SHARDS: &str = "it is a sharded cluster, on which these are not tried: collections that are sharded there \
     (unique values that change hands, documents whose shard key changes, capped ones), renames and `dropDatabase`, \
     index builds and what is said of their progress, `--digest`, `restore`, and the mark of ownership while shards are away";

/// What the agent does in Atlas.
const NEEDED: [&str; 6] =
    ["find", "insert", "update", "remove", "createCollection", "dropCollection"];

async fn check_privileges(mongo: &Mongo, config: &Config, lines: &mut Report) {
    let command = rawdoc! { "connectionStatus": 1, "showPrivileges": true };
    let reply = match mongo.command("admin", command).await {
        Ok(reply) => reply,
        Err(error) => {
            return lines.problem("atlas", command_error(&error).to_string(), "check the user");
        }
    };
    let Ok(auth) = reply.get_document("authInfo") else {
        return;
    };
    let list = |key: &str| -> Vec<&Document> {
        auth.get_array(key)
            .map(|all| all.iter().filter_map(|v| v.as_document()).collect())
            .unwrap_or_default()
    };
    if list("authenticatedUsers").is_empty() {
        return lines.warning(
            "atlas",
            "no user is authenticated",
            "fine for a test without access control only",
        );
    }
    let privileges = list("authenticatedUserPrivileges");
    let named = config.filter().ok().and_then(|filter| databases(&filter));
    // Where the patterns choose among all databases, it is enough to have the rights on one of them: which it will be is not
    // known yet.
    let of_data: Vec<_> = named.map_or(vec![None], |named| named.into_iter().map(Some).collect());
    let of_mark = Some(config.atlas.state_database.clone());
    let is_fine = of_data.iter().chain([&of_mark]).fold(true, |is_fine, db| {
        let may = |action: &&str| privileges.iter().any(|of| grants(of, action, db.as_deref()));
        let missing: Vec<_> = NEEDED.into_iter().filter(|action| !may(action)).collect();
        if missing.is_empty() {
            return is_fine;
        }
        let there = db.as_ref().map(|db| format!(" in the database `{db}`")).unwrap_or_default();
        lines.problem(
            "atlas",
            format!("the user may not {}{there}", missing.join(", ")),
            "grant it the roles that `outrigger roles` prints",
        );
        false
    });
    if is_fine {
        lines.ok("atlas", "the user may write");
    }
    let bypasses = |db: &Option<String>| {
        privileges.iter().any(|of| grants(of, "bypassDocumentValidation", db.as_deref()))
    };
    if !of_data.iter().all(bypasses) {
        lines.warning(
            "atlas",
            "the user may not bypass document validation, so a document that violates a validator cannot be copied",
            "grant the action bypassDocumentValidation, if collections have validators",
        );
    }
}

/// Whether a privilege allows `action` in this database, or in any.
fn grants(privilege: &Document, action: &str, db: Option<&str>) -> bool {
    let has = |of: &&bson::Array| of.iter().any(|of| of.as_str() == Some(action));
    let (Ok(actions), Ok(of)) =
        (privilege.get_array("actions"), privilege.get_document("resource"))
    else {
        return false;
    };
    let is_there = match (db, of.get_str("db")) {
        (None, _) => true,
        (Some(db), Ok(of_db)) => of_db.is_empty() || of_db == db,
        (Some(_), Err(_)) => of.get_bool("anyResource").unwrap_or(false),
    };
    let is_of_data = !of.get_str("collection").is_ok_and(|name| name.starts_with("system."));
    is_there && is_of_data && has(&actions)
}
