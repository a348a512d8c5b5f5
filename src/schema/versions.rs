//! What a server of some version cannot take. From the manual's "New in version" notes, and what the
//! servers of the version matrix answer.

use std::{fmt, str::FromStr};

use bson::RawDocument;

use super::{
    Description, Kind, name_of,
    value::{self, Value, fields, get, is_on, uses},
};

/// Major and minor version of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl FromStr for Version {
    type Err = ();

    /// Reads `6.0.5`, or `6.0`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.').map_while(|part| part.parse().ok());
        Ok(Version(parts.next().ok_or(())?, parts.next().unwrap_or(0)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// What of a collection or view a server of `version` would refuse, a phrase each, with the version that
/// takes it.
pub fn not_taken(description: &Description, version: Version) -> Vec<(String, Version)> {
    let mut found = Vec::new();
    let mut needs = |what: String, since: Version| {
        if version < since {
            found.push((what, since));
        }
    };
    let options = &description.options;
    if let Some(since) = get(options, "clusteredIndex").map(|_| Version(5, 3)) {
        needs("a clustered collection".to_owned(), since);
    }
    let images = get(options, "changeStreamPreAndPostImages").and_then(Value::document);
    if images.is_some_and(|images| is_on(images, "enabled")) {
        needs("option `changeStreamPreAndPostImages`".to_owned(), Version(6, 0));
    }
    if get(options, "encryptedFields").is_some() {
        needs("option `encryptedFields`".to_owned(), Version(6, 0));
    }
    if get(options, "validationAction").and_then(Value::text) == Some("errorAndLog") {
        needs("`validationAction: errorAndLog`".to_owned(), Version(8, 1));
    }
    if description.kind == Kind::Collection {
        for spec in &description.indexes {
            for (what, since) in index_needs(spec) {
                needs(format!("index `{}`: {what}", name_of(spec)), since);
            }
        }
    }
    for (operator, since) in OPERATORS {
        if description.kind == Kind::View
            && get(options, "pipeline").is_some_and(|p| uses(p, operator))
        {
            needs(format!("`{operator}` in the view's pipeline"), *since);
        }
        if get(options, "validator").is_some_and(|validator| uses(validator, operator)) {
            needs(format!("`{operator}` in the validator"), *since);
        }
    }
    found
}

/// Stages and operators of pipelines that came with 5.0 or later.
const OPERATORS: &[(&str, Version)] = &[
    ("$setWindowFields", Version(5, 0)),
    ("$dateAdd", Version(5, 0)),
    ("$dateDiff", Version(5, 0)),
    ("$dateSubtract", Version(5, 0)),
    ("$dateTrunc", Version(5, 0)),
    ("$getField", Version(5, 0)),
    ("$setField", Version(5, 0)),
    ("$rand", Version(4, 4)),
    ("$sampleRate", Version(4, 4)),
    ("$documents", Version(5, 1)),
    ("$tsSecond", Version(5, 1)),
    ("$tsIncrement", Version(5, 1)),
    ("$densify", Version(5, 1)),
    ("$sortArray", Version(5, 2)),
    ("$topN", Version(5, 2)),
    ("$bottomN", Version(5, 2)),
    ("$firstN", Version(5, 2)),
    ("$lastN", Version(5, 2)),
    ("$maxN", Version(5, 2)),
    ("$minN", Version(5, 2)),
    ("$locf", Version(5, 2)),
    ("$fill", Version(5, 3)),
    ("$linearFill", Version(5, 3)),
    ("$bitAnd", Version(6, 3)),
    ("$bitOr", Version(6, 3)),
    ("$bitXor", Version(6, 3)),
    ("$bitNot", Version(6, 3)),
    ("$median", Version(7, 0)),
    ("$percentile", Version(7, 0)),
    ("$toUUID", Version(8, 0)),
];

fn index_needs(spec: &RawDocument) -> Vec<(&'static str, Version)> {
    let key = get(spec, "key").and_then(Value::document).map(ToOwned::to_owned).unwrap_or_default();
    let is_wildcard = |name: &str| name == "$**" || name.ends_with(".$**");
    let of_kind = |kind: &str| {
        value::names(&key).any(|name| get(&key, &name).and_then(Value::text) == Some(kind))
    };
    let is_compound = fields(&key).count() > 1;
    let mut needs = Vec::new();
    if is_on(spec, "prepareUnique") {
        needs.push(("prepareUnique", Version(6, 0)));
    }
    if value::names(&key).any(|name| is_wildcard(&name)) {
        needs.push(("a wildcard", Version(4, 2)));
        if is_compound {
            needs.push(("a compound wildcard", Version(7, 0)));
        }
    }
    if of_kind("columnstore") {
        needs.push(("a column store", Version(6, 3)));
    }
    if is_on(spec, "hidden") {
        needs.push(("hidden", Version(4, 4)));
    }
    if of_kind("hashed") && is_compound {
        needs.push(("a compound hashed index", Version(4, 4)));
    }
    if let Some(filter) = get(spec, "partialFilterExpression")
        && (uses(filter, "$or") || uses(filter, "$in"))
    {
        needs.push(("`$or` or `$in` in the partial filter", Version(6, 0)));
    }
    needs
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;
    use crate::schema::Claim;

    fn phrases(description: &Description, version: &str) -> Vec<String> {
        let found = not_taken(description, version.parse().unwrap());
        found.into_iter().map(|(what, since)| format!("{what} ({since})")).collect()
    }

    #[test]
    fn what_a_version_cannot_take_is_named_with_the_version_that_can() {
        let description = Description {
            kind: Kind::Collection,
            claim: Claim::Whole,
            id: None,
            options: rawdoc! { "clusteredIndex": {}, "changeStreamPreAndPostImages": { "enabled": true } },
            indexes: vec![
                rawdoc! { "name": "p", "key": { "a": 1 }, "prepareUnique": true },
                rawdoc! { "name": "w", "key": { "a": 1, "$**": 1 } },
            ],
        };

        assert_eq!(
            phrases(&description, "5.0.4"),
            [
                "a clustered collection (5.3)",
                "option `changeStreamPreAndPostImages` (6.0)",
                "index `p`: prepareUnique (6.0)",
                "index `w`: a compound wildcard (7.0)",
            ]
        );
        assert_eq!(phrases(&description, "7.0.1"), Vec::<String>::new());
    }

    #[test]
    fn a_view_is_judged_by_its_pipeline() {
        let view = Description {
            kind: Kind::View,
            claim: Claim::Whole,
            id: None,
            options: rawdoc! { "viewOn": "a", "pipeline": [{ "$set": { "s": { "$sortArray": { "input": "$x", "sortBy": 1 } } } }] },
            indexes: Vec::new(),
        };

        assert_eq!(phrases(&view, "5.0.31"), ["`$sortArray` in the view's pipeline (5.2)"]);
        assert_eq!(phrases(&view, "6.0.5"), Vec::<String>::new());
    }
}
