//! Hand-made cases. That deltas agree with the server is shown by `tests/promises/deltas_are_exact.rs`.

use bson::rawdoc;

use super::*;

fn delta(diff: RawDocumentBuf) -> Delta {
    Delta::from_diff(&diff).unwrap()
}

#[test]
fn fields_change_in_place_go_and_are_appended() {
    let before = rawdoc! { "_id": 1, "a": 1, "b": 2, "c": 3 };

    let after =
        delta(rawdoc! { "d": { "b": false }, "u": { "a": "x" }, "i": { "z": 9 } }).apply(&before);

    assert_eq!(after.unwrap(), rawdoc! { "_id": 1, "a": "x", "c": 3, "z": 9 });
}

#[test]
fn an_insert_of_a_present_field_moves_it_to_the_end() {
    let before = rawdoc! { "_id": 1, "a": 1, "b": 2 };

    assert_eq!(
        delta(rawdoc! { "i": { "a": 5 } }).apply(&before).unwrap(),
        rawdoc! { "_id": 1, "b": 2, "a": 5 }
    );
}

#[test]
fn names_with_dots_and_dollars_and_none_at_all_are_only_names() {
    let before = rawdoc! { "_id": 1, "a.b": 1, "$x": { "": 1 } };

    let after =
        delta(rawdoc! { "u": { "a.b": 2 }, "s$x": { "u": { "": 3 } } }).apply(&before).unwrap();

    assert_eq!(after, rawdoc! { "_id": 1, "a.b": 2, "$x": { "": 3 } });
}

#[test]
fn an_array_is_truncated_changed_and_grown() {
    let before = rawdoc! { "_id": 1, "a": [1, { "n": 1 }, 3, 4] };

    let after =
        delta(rawdoc! { "sa": { "a": true, "l": 2, "s1": { "u": { "n": 2 } }, "u3": "new" } })
            .apply(&before)
            .unwrap();

    assert_eq!(after, rawdoc! { "_id": 1, "a": [1, { "n": 2 }, null, "new"] });
}

#[test]
fn a_truncation_of_what_is_not_held_whole_never_wipes_it() {
    let truncate = delta(rawdoc! { "sa": { "a": true, "l": 2 } });

    assert!(truncate.apply(&rawdoc! { "_id": 1 }).is_err());
    assert!(truncate.apply(&rawdoc! { "_id": 1, "a": { "not": "an array" } }).is_err());
    assert!(truncate.apply(&rawdoc! { "_id": 1, "a": [1] }).is_err());
    assert_eq!(truncate.to_command(), None);
}

/// A client may send an array like that, and the server keeps it.
#[test]
fn an_array_whose_items_have_other_names_than_their_places_is_inexact_when_it_changes() {
    let named = |name: &str| {
        let mut array = RawDocumentBuf::new();
        array.append(<&bson::raw::CStr>::try_from(name).unwrap(), rawdoc! { "n": 1 });
        let mut items = array.into_bytes();
        // Of an array's kind, and nothing else: `{_id: 1, a: […], b: 1}`.
        let mut document = rawdoc! { "_id": 1 }.into_bytes();
        document.pop();
        document.extend_from_slice(b"\x04a\0");
        document.append(&mut items);
        document.extend_from_slice(b"\x10b\0\x01\0\0\0\0");
        let len = document.len() as i32;
        document[..4].copy_from_slice(&len.to_le_bytes());
        RawDocumentBuf::from_bytes(document).unwrap()
    };
    let within = delta(rawdoc! { "sa": { "a": true, "s0": { "u": { "n": 2 } } } });
    let grown = delta(rawdoc! { "sa": { "a": true, "u1": 5 } });
    let beside = delta(rawdoc! { "u": { "b": 1 } });

    for name in ["7", "00", "", "x"] {
        assert!(within.apply(&named(name)).is_err() && grown.apply(&named(name)).is_err());
        assert_eq!(beside.apply(&named(name)).unwrap(), named(name), "it is not touched");
    }
    assert!(within.apply(&named("0")).is_ok());
}

#[test]
fn a_numeric_path_part_is_told_apart_by_the_diff_itself() {
    let diff = delta(rawdoc! { "so": { "u": { "0": 5 } } });

    assert_eq!(
        diff.apply(&rawdoc! { "_id": 1, "o": { "0": 1 } }).unwrap(),
        rawdoc! { "_id": 1, "o": { "0": 5 } }
    );
    assert!(diff.apply(&rawdoc! { "_id": 1, "o": [1] }).is_err());
}

#[test]
fn what_does_not_fit_is_inexact() {
    let before = rawdoc! { "_id": 1, "a": 1 };

    for diff in [
        rawdoc! { "u": { "missing": 1 } },
        rawdoc! { "smissing": { "u": { "x": 1 } } },
        rawdoc! { "sa": { "u": { "x": 1 } } },
    ] {
        assert!(delta(diff).apply(&before).is_err());
    }
    for diff in [
        rawdoc! { "b": { "binary": 1 } },
        rawdoc! { "u": 5 },
        rawdoc! { "u": { "a": 1 }, "d": { "a": false } },
        rawdoc! { "sa": { "a": true, "l": -1 } },
        rawdoc! { "sa": { "a": true, "ux": 1 } },
        rawdoc! { "sa": { "a": true, "u4000000000": 1 } },
    ] {
        assert!(Delta::from_diff(&diff).is_err(), "{diff:?}");
    }
}

#[test]
fn merged_deltas_have_the_effect_of_both() {
    let before = rawdoc! { "_id": 1, "a": 1, "b": { "x": 1, "y": [1, 2, 3] }, "c": 3 };
    let steps = [
        rawdoc! { "i": { "n": { "v": 1 }, "m": 1 } },
        rawdoc! { "sn": { "u": { "v": 2 } }, "d": { "a": false } },
        rawdoc! { "sb": { "u": { "x": 5 }, "sy": { "a": true, "l": 1, "u1": 9 } } },
        rawdoc! { "i": { "a": "again" }, "u": { "c": [1] } },
        rawdoc! { "sb": { "sy": { "a": true, "u2": 7 } }, "sc": { "a": true, "u1": 2 } },
        rawdoc! { "i": { "n": "moved" }, "d": { "m": false } },
    ];

    let mut stepwise = before.clone();
    let mut merged: Option<Delta> = None;
    for step in steps {
        let step = delta(step);
        stepwise = step.apply(&stepwise).unwrap();
        merged = Some(merged.map_or(Ok(step.clone()), |merged| merged.then(&step)).unwrap());
    }

    assert_eq!(merged.unwrap().apply(&before).unwrap(), stepwise);
}

#[test]
fn a_field_that_was_born_and_removed_meanwhile_leaves_nothing() {
    let merged =
        delta(rawdoc! { "i": { "t": 1 } }).then(&delta(rawdoc! { "d": { "t": false } })).unwrap();

    assert_eq!(merged.apply(&rawdoc! { "_id": 1 }).unwrap(), rawdoc! { "_id": 1 });
}

#[test]
fn a_command_exists_where_set_and_unset_say_it_exactly() {
    let diff = delta(rawdoc! {
        "d": { "b": false }, "u": { "a": 1 }, "i": { "z": 2 },
        "sarr": { "a": true, "u3": 4, "s0": { "u": { "q": 1 } } },
        "so": { "u": { "x": 1 } },
    });

    let command = diff.to_command().unwrap();

    assert_eq!(
        command.update,
        rawdoc! {
            "$set": { "a": 1, "z": 2, "arr.0.q": 1, "arr.3": 4, "o.x": 1 },
            "$unset": { "b": true },
        }
    );
    assert_eq!(command.absent, ["z"]);
}

#[test]
fn there_is_no_command_where_the_server_would_read_it_differently() {
    for diff in [
        rawdoc! { "i": { "x": 1, "a": 2 } },
        rawdoc! { "u": { "a.b": 1 } },
        rawdoc! { "u": { "$a": 1 } },
        rawdoc! { "u": { "": 1 } },
        rawdoc! { "so": { "u": { "5": 1 } } },
        rawdoc! { "sa": { "a": true, "l": 1 } },
    ] {
        assert_eq!(delta(diff.clone()).to_command(), None, "{diff:?}");
    }
}

#[test]
fn a_truncation_that_ends_among_padding_is_inexact() {
    let cut_and_grown = delta(rawdoc! { "sa": { "a": true, "l": 2, "u5": 1 } });

    assert!(cut_and_grown.then(&delta(rawdoc! { "sa": { "a": true, "l": 4 } })).is_err());
}
