//! The column of a table by whose values its rows are walked and found: in the order of MongoDB, and by an index of the
//! table's own where there can be one.
//!
//! Texts stand in MongoDB in the order of their bytes. A UUID's text has that order too, as a whole number has its own;
//! texts have it where their collation is that of the bytes. All others are compared as texts of that collation, which
//! [`Key::order`] says in SQL: an index of that expression serves them as well.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{
    shape::is_whole,
    table::{literal, quoted, quoted_table},
};
use crate::{
    config::TableRule,
    postgres::connect::{Failed, Session},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Whole numbers, which are numbers in the documents too.
    Whole,
    /// Whole numbers, which are texts in the documents: `10` comes before `9`.
    WholeAsText,
    Uuid,
    /// Texts in the order of their bytes.
    Bytes,
    /// Texts in another order.
    Text,
    /// Whatever else has a text.
    Other,
}

/// The key of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    column: String,
    kind: Kind,
}

/// The type of a column, and whether its texts are sorted by their bytes. Before PostgreSQL 15 a database's order is the
/// C library's; CockroachDB's texts without a collation are sorted so whatever their column says.
const LOOK: &str = "SELECT format_type(a.atttypid, a.atttypmod)::text, coalesce(version() LIKE 'CockroachDB%' \
     OR c.collname IN ('C', 'POSIX', 'ucs_basic') OR (c.collname = 'default' AND (SELECT datcollate IN ('C', 'POSIX') \
     AND coalesce(to_jsonb(d)->>'datlocprovider', 'c') = 'c' FROM pg_database d WHERE datname = current_database())), false) \
     FROM pg_attribute a LEFT JOIN pg_collation c ON c.oid = a.attcollation \
     WHERE a.attrelid = $1::text::regclass AND a.attname = $2::text";

impl Key {
    /// Looks at the column; `is_number` of documents whose `_id`s are to be numbers where the column has such.
    pub async fn look(
        session: &mut Session,
        rule: &TableRule,
        is_number: bool,
    ) -> Result<Self, Failed> {
        let table = quoted_table(&rule.name);
        let rows = session.query(LOOK, &[(&table, Type::TEXT), (&rule.key, Type::TEXT)]).await?;
        let (ty, is_by_bytes) =
            rows.first().map_or((String::new(), false), |row| (row.get(0), row.get(1)));
        Ok(Self { column: quoted(&rule.key), kind: kind(&ty, is_by_bytes, is_number) })
    }

    /// True where the `_id`s of the documents are numbers.
    pub fn is_number(&self) -> bool {
        self.kind == Kind::Whole
    }

    /// Its values in MongoDB's order, in SQL.
    pub fn order(&self) -> String {
        let column = self.in_sql();
        match self.kind {
            Kind::Whole | Kind::Uuid | Kind::Bytes => column,
            Kind::Text => format!("({column} COLLATE \"C\")"),
            Kind::WholeAsText | Kind::Other => format!("({column}::text COLLATE \"C\")"),
        }
    }

    /// The rows whose key is `than` such a value.
    pub fn compared(&self, than: &str, value: &str) -> String {
        match self.kind {
            Kind::Whole => format!("{} {than} {value}", self.order()),
            Kind::Uuid if is_uuid(value) => {
                format!("{} {than} {}::uuid", self.order(), literal(value))
            }
            // A text that is none stands between them all the same.
            Kind::Uuid => {
                format!("({}::text COLLATE \"C\") {than} {}", self.in_sql(), literal(value))
            }
            _ => format!("{} {than} {}", self.order(), literal(value)),
        }
    }

    /// The rows of these values; `None` where no row can have one of them.
    pub fn one_of(&self, values: &[String]) -> Option<String> {
        let column = self.in_sql();
        let list = |of: &mut dyn Iterator<Item = String>| {
            let values: Vec<String> = of.collect();
            (!values.is_empty()).then(|| values.join(", "))
        };
        let texts = || list(&mut values.iter().map(|value| literal(value)));
        Some(match self.kind {
            Kind::Whole => format!("{column} IN ({})", list(&mut values.iter().cloned())?),
            Kind::WholeAsText => {
                let is_one =
                    |value: &&String| value.parse::<i64>().is_ok_and(|n| n.to_string() == **value);
                format!("{column} IN ({})", list(&mut values.iter().filter(is_one).cloned())?)
            }
            Kind::Uuid => {
                let uuids = values.iter().filter(|value| is_uuid(value));
                let uuids = list(&mut uuids.map(|value| format!("{}::uuid", literal(value))));
                format!("{column} IN ({})", uuids?)
            }
            Kind::Bytes => format!("{column} IN ({})", texts()?),
            // By the index of the column's own collation, in which other texts may be equal too.
            Kind::Text => format!("{column} IN ({0}) AND {1} IN ({0})", texts()?, self.order()),
            Kind::Other => format!("{} IN ({})", self.order(), texts()?),
        })
    }

    /// What an index is made of that walks the table in order, in SQL; `None` where that of the key does.
    pub fn wants_index(&self) -> Option<String> {
        let column = &self.column;
        match self.kind {
            Kind::Whole | Kind::Uuid | Kind::Bytes => None,
            Kind::Text => Some(format!("({column} COLLATE \"C\")")),
            Kind::WholeAsText | Kind::Other => Some(format!("(({column}::text) COLLATE \"C\")")),
        }
    }

    fn in_sql(&self) -> String {
        format!("t.{}", self.column)
    }
}

fn kind(ty: &str, is_by_bytes: bool, is_number: bool) -> Kind {
    match ty {
        ty if is_whole(ty) && is_number => Kind::Whole,
        ty if is_whole(ty) => Kind::WholeAsText,
        "uuid" => Kind::Uuid,
        ty if ty == "text" || ty.starts_with("character varying") => {
            if is_by_bytes {
                Kind::Bytes
            } else {
                Kind::Text
            }
        }
        _ => Kind::Other,
    }
}

/// As PostgreSQL shows one: of another notation it is another text.
fn is_uuid(text: &str) -> bool {
    Uuid::parse_str(text).is_ok_and(|uuid| uuid.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0193a5b0-0000-7000-8000-00000000000a";

    fn key(ty: &str, is_by_bytes: bool, is_number: bool) -> Key {
        Key { column: "\"id\"".to_owned(), kind: kind(ty, is_by_bytes, is_number) }
    }

    #[test]
    fn a_key_is_compared_by_its_own_index_where_that_has_mongodbs_order() {
        let other = "(t.\"id\"::text COLLATE \"C\")";
        for (ty, is_by_bytes, is_number, order) in [
            ("bigint", false, true, "t.\"id\""),
            ("bigint", false, false, other),
            ("uuid", false, false, "t.\"id\""),
            ("text", true, false, "t.\"id\""),
            ("character varying(36)", true, false, "t.\"id\""),
            ("text", false, false, "(t.\"id\" COLLATE \"C\")"),
            // Spaces at its end count in no comparison of its own.
            ("character(3)", true, false, other),
            ("numeric", false, false, other),
        ] {
            let key = key(ty, is_by_bytes, is_number);
            assert_eq!(key.order(), order, "{ty}");
            assert_eq!(key.wants_index().is_none(), order == "t.\"id\"", "{ty}");
        }
    }

    #[test]
    fn a_text_that_is_no_key_of_the_table_is_compared_and_found_nowhere() {
        let (uuid, upper) = (key("uuid", false, false), ONE.to_uppercase());
        assert_eq!(uuid.compared("<", ONE), format!("t.\"id\" < '{ONE}'::uuid"));
        assert_eq!(
            uuid.compared(">", &upper),
            format!("(t.\"id\"::text COLLATE \"C\") > '{upper}'")
        );
        let find = |key: &Key, values: &[&str]| {
            let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
            key.one_of(&values)
        };
        assert_eq!(find(&uuid, &["x", ONE, &upper]), Some(format!("t.\"id\" IN ('{ONE}'::uuid)")));
        assert_eq!(find(&uuid, &["x"]), None);
        let whole = key("integer", false, false);
        assert_eq!(find(&whole, &["7", "07", "+7", "x"]).unwrap(), "t.\"id\" IN (7)");
        assert_eq!(find(&whole, &["07"]), None);
        let text = key("text", false, false);
        assert_eq!(
            find(&text, &["it's"]).unwrap(),
            "t.\"id\" IN ('it''s') AND (t.\"id\" COLLATE \"C\") IN ('it''s')"
        );
        assert_eq!(find(&text, &[]), None);
    }
}
