//! Which collections a server has.

use crate::{
    model::{
        namespace::{Namespace, NamespaceFilter},
        raw,
    },
    mongo::{Mongo, MongoError},
    schema::{Description, Kind, value},
    side::{Collection, LeftOut, Listing},
};

/// See [`Side::list`](crate::side::Side::list).
pub(super) async fn list(mongo: &Mongo, filter: &NamespaceFilter) -> Result<Listing, MongoError> {
    let mut listing = Listing::default();
    for db in mongo.list_databases().await? {
        // Of such a database no more can be asked.
        if db.contains(char::REPLACEMENT_CHARACTER) {
            let ns = Namespace::new(&db, "*");
            let reason = filter.kept_apart(&ns);
            listing.left_out.extend(reason.map(|reason| LeftOut { ns, reason }));
            continue;
        }
        let mut is_emptied = true;
        for item in mongo.list_collections(&db).await? {
            // With a sign in the place of what is no text, by which the filter knows it.
            let name = value::get(&item, "name").map(|name| raw::lossy(name.bytes));
            let ns = Namespace::new(&db, &name.unwrap_or_default());
            is_emptied &= matches!(ns.coll(), "system.views" | "system.profile");
            if !filter.matches(&ns) {
                match filter.kept_apart(&ns) {
                    Some(reason) => listing.left_out.push(LeftOut { ns, reason }),
                    None => listing.not_chosen.push(ns),
                }
                continue;
            }
            let Description { kind, id, options, .. } = Description::of(&item);
            match kind {
                Kind::Collection => listing.collections.push(Collection { ns, options, id }),
                Kind::View => listing.views.push(Collection { ns, options, id }),
                Kind::TimeSeries => {
                    listing.left_out.push(LeftOut { ns, reason: "a time-series collection" });
                }
                Kind::Other => {
                    let reason = "a kind of collection that is not known";
                    listing.left_out.push(LeftOut { ns, reason });
                }
            }
        }
        if is_emptied {
            listing.emptied.push(db.clone());
        }
        listing.databases.push(db);
    }
    Ok(listing)
}
