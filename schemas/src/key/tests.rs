//! Property tests of keys: writing and parsing are inverse.

use super::*;
use proptest::prelude::*;

fn part() -> impl Strategy<Value = Part<'static>> {
    prop_oneof![
        Just(Part::Null),
        any::<bool>().prop_map(Part::Bool),
        any::<i32>().prop_map(Part::Int),
        any::<String>().prop_map(|text| Part::Str(Cow::Owned(text))),
        "[\\x00-\\x1f\"\\\\/a]{0,8}".prop_map(|text| Part::Str(Cow::Owned(text))),
        // Whole numbers of 32 bits are read back as integers, so float parts must be other numbers.
        proptest::num::f64::NORMAL
            .prop_filter("not an int", |value| value.fract() != 0.0 || value.abs() > 3e9)
            .prop_map(Part::Number),
    ]
}

fn written(parts: &[Part<'_>]) -> Vec<u8> {
    Key::build(|key| parts.iter().fold(key, |key, part| key.part(part)))
        .as_bytes()
        .to_vec()
}

proptest! {
    #[test]
    fn what_is_written_reads_back(list in prop::collection::vec(part(), 0..6)) {
        let bytes = written(&list);
        prop_assert_eq!(parts(&bytes).unwrap(), list);
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        prop_assert!(value.is_array());
    }

    #[test]
    fn what_is_read_would_be_written_the_same(bytes in "\\[[\\[\\]\",0-9\\\\untrfalse. eE+-]{0,24}\\]") {
        if let Ok(list) = parts(bytes.as_bytes()) {
            prop_assert_eq!(written(&list), bytes.as_bytes());
        }
    }

    #[test]
    fn a_changed_byte_is_refused_or_gives_another_canonical_key(
        list in prop::collection::vec(part(), 1..4), at: prop::sample::Index, byte: u8,
    ) {
        let mut bytes = written(&list);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(list) = parts(&bytes) {
            prop_assert_eq!(written(&list), bytes);
        }
    }

    #[test]
    fn the_rest_is_what_the_other_parts_are(list in prop::collection::vec(part(), 1..5)) {
        let bytes = written(&list);
        let mut reader = Parts::new(&bytes).unwrap();
        reader.next().unwrap().unwrap();
        let rest = Key::build(|key| key.inside(reader.rest()));
        prop_assert_eq!(rest.parts(), list[1..].to_vec());
    }
}

#[test]
fn a_key_that_is_not_canonical_is_refused() {
    let cases: [(&[u8], usize, &str); 20] = [
        (b"", 0, "expected `[`"),
        (b"{}", 0, "expected `[`"),
        (b"[", 1, "expected a string, a number, true, false or null"),
        (b"[ ]", 1, "expected a string, a number, true, false or null"),
        (b"[1, 2]", 3, "expected a string, a number, true, false or null"),
        (b"[1,]", 3, "expected a string, a number, true, false or null"),
        (b"[1]x", 2, "expected `,` or the final `]`"),
        (b"[1", 2, "expected `,` or the final `]`"),
        (b"[[1]]", 1, "expected a string, a number, true, false or null"),
        (b"[01]", 1, "this number is not in its canonical form"),
        (b"[-0]", 1, "this number is not in its canonical form"),
        (b"[1.0]", 1, "this number is not in its canonical form"),
        (b"[1e2]", 1, "this number is not in its canonical form"),
        (b"[1e999]", 1, "this is not a number"),
        (b"[tru]", 1, "expected a string, a number, true, false or null"),
        (b"[\"a]", 4, "expected a string"),
        (
            b"[\"\\/\"]",
            2,
            "the escape is invalid, or not the shortest escape for its character",
        ),
        (
            b"[\"\\u0041\"]",
            2,
            "the escape is invalid, or not the shortest escape for its character",
        ),
        (
            b"[\"\\u000a\"]",
            2,
            "the escape is invalid, or not the shortest escape for its character",
        ),
        (
            b"[\"\\u001F\"]",
            2,
            "the escape is invalid, or not the shortest escape for its character",
        ),
    ];
    for (bytes, at, reason) in cases {
        let error = parts(bytes).unwrap_err();
        if reason == "expected a string" {
            assert_eq!(
                error,
                KeyError {
                    at: bytes.len(),
                    reason: "the string does not end"
                }
            );
        } else {
            assert_eq!(error, KeyError { at, reason }, "{}", String::from_utf8_lossy(bytes));
        }
    }
    assert_eq!(parts(b"[\"\xff\"]").unwrap_err().reason, "it is not UTF-8");
    assert_eq!(
        parts(b"[\"\n\"]").unwrap_err().reason,
        "a control character must be escaped"
    );
    assert!(Key::parse(&vec![b'['; KEY_BYTES_MAX + 1]).is_err());
}

#[test]
fn keys_look_as_documented() {
    let key = Key::build(|key| {
        key.str("orders")
            .int(-17)
            .long(1 << 53)
            .bool(true)
            .null()
            .str("a\"\n\u{1f}é")
    });
    assert_eq!(
        key.as_str(),
        "[\"orders\",-17,\"9007199254740992\",true,null,\"a\\\"\\n\\u001fé\"]"
    );
    assert_eq!(Key::of(&[]).as_str(), "[]");
    assert_eq!(Key::of(&[]).parts(), []);
    assert_eq!(Key::of(&["~end", "w"]).inside(), "\"~end\",\"w\"");
}
