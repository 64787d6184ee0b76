//! Column types: random values in SQL, and the SQL expression for the JSON value that devices receive
//! (docs/reference/formats.md, "Values in keys and rows").

use streams_test::simulation::Rng;

/// How the value on a device follows from the value in the database.
#[derive(Debug, Clone, Copy)]
pub enum Json {
    /// The text of the value is JSON.
    Verbatim,
    /// The text of the value, as a JSON string.
    Text,
    /// As `to_json` converts it.
    Native,
    /// A number, unless it is not finite.
    Float,
    /// Base64, without the line breaks of `encode`.
    Base64,
    /// RFC 3339 in UTC.
    Utc,
    /// An array of texts.
    Texts,
    /// An array of RFC 3339 texts in UTC.
    UtcArray,
}

impl Json {
    /// The expression for a column. The session has the time zone UTC.
    pub fn expression(self, column: &str) -> String {
        match self {
            Json::Verbatim => format!("{column}::text"),
            Json::Text => format!("to_json({column}::text)::text"),
            Json::Native => format!("to_json({column})::text"),
            Json::Float => format!(
                "CASE WHEN {column}::text IN ('NaN', 'Infinity', '-Infinity') THEN to_json({column}::text)::text \
                 ELSE {column}::text END"
            ),
            Json::Base64 => format!("to_json(translate(encode({column}, 'base64'), E'\\n', ''))::text"),
            Json::Utc => format!(
                "CASE WHEN isfinite({column}) THEN to_json(rtrim(rtrim(to_char({column}, \
                 'YYYY-MM-DD\"T\"HH24:MI:SS.US'), '0'), '.') || 'Z')::text ELSE to_json({column}::text)::text END"
            ),
            Json::Texts => format!("to_json({column}::text[])::text"),
            Json::UtcArray => format!("replace(to_json({column})::text, '+00:00', 'Z')"),
        }
    }
}

/// A column type.
#[derive(Debug)]
pub struct Type {
    /// Its name in SQL and in the topology.
    pub name: &'static str,
    /// Its form on devices.
    pub json: Json,
    /// A random value that is not null, as an SQL expression.
    pub value: fn(&mut Rng) -> String,
}

/// The type of `seq`, and of columns that are added.
pub static INT8: Type = Type {
    name: "int8",
    json: Json::Text,
    value: |rng| one_of(rng, &["-9223372036854775808", "9223372036854775807", "0", "17"]),
};

/// The type of a column whose type is changed to a wider one.
pub static INT4: Type = Type {
    name: "int4",
    json: Json::Verbatim,
    value: |rng| one_of(rng, &["-2147483648", "2147483647", "0", "42", "-1"]),
};

/// The type of a column whose scale is changed.
pub static NUMERIC: Type = Type {
    name: "numeric(20,4)",
    json: Json::Text,
    value: |rng| format!("{}.{:04}", rng.below(1_000_000), rng.below(10_000)),
};

/// The type of the column that also has large values.
pub static TEXT: Type = Type {
    name: "text",
    json: Json::Native,
    value: text,
};

/// All other types.
pub static TYPES: [Type; 26] = [
    Type {
        name: "bool",
        json: Json::Verbatim,
        value: |rng| one_of(rng, &["true", "false"]),
    },
    Type {
        name: "int2",
        json: Json::Verbatim,
        value: |rng| one_of(rng, &["-32768", "32767", "0", "7"]),
    },
    Type {
        name: "float4",
        json: Json::Float,
        value: |rng| one_of(rng, &["1.5", "'NaN'", "'-Infinity'", "3.4e38", "0.1", "-8"]),
    },
    Type {
        name: "float8",
        json: Json::Float,
        value: |rng| one_of(rng, &["0.1", "1e300", "'NaN'", "'Infinity'", "-2.5", "1e-7", "12"]),
    },
    Type {
        name: "numeric",
        json: Json::Text,
        value: |rng| {
            one_of(
                rng,
                &[
                    "123456789012345678901234567890.123456789",
                    "'NaN'",
                    "-0.00",
                    "1e-20",
                    "7",
                ],
            )
        },
    },
    Type {
        name: "varchar",
        json: Json::Native,
        value: |rng| one_of(rng, &["''", "'abc'", "'it''s'", "E'tab\\tnew\\nline'"]),
    },
    Type {
        name: "bpchar",
        json: Json::Native,
        value: |rng| one_of(rng, &["'ab '", "''"]),
    },
    Type {
        name: "bytea",
        json: Json::Base64,
        value: |rng| format!("decode('{:016x}', 'hex')", rng.number()),
    },
    Type {
        name: "date",
        json: Json::Native,
        value: |rng| one_of(rng, &["'2024-02-29'", "'infinity'", "'1999-12-31'", "'-infinity'"]),
    },
    Type {
        name: "timestamp",
        json: Json::Native,
        value: |rng| {
            one_of(
                rng,
                &[
                    "'2024-02-29 12:34:56.789'",
                    "'infinity'",
                    "'1969-12-31 23:59:59.999999'",
                ],
            )
        },
    },
    Type {
        name: "timestamptz",
        json: Json::Utc,
        value: |rng| {
            one_of(
                rng,
                &[
                    "'2024-02-29 12:34:56+05:30'",
                    "'-infinity'",
                    "'1900-01-01 00:00:00.000001+00'",
                ],
            )
        },
    },
    Type {
        name: "time",
        json: Json::Text,
        value: |rng| one_of(rng, &["'12:34:56.5'", "'00:00'"]),
    },
    Type {
        name: "interval",
        json: Json::Text,
        value: |rng| one_of(rng, &["'1 year 2 mons -3 days 04:05:06.7'", "'0'"]),
    },
    Type {
        name: "uuid",
        json: Json::Native,
        value: |rng| format!("md5('{}')::uuid", rng.number()),
    },
    Type {
        name: "json",
        json: Json::Verbatim,
        value: |rng| one_of(rng, &["'{\"a\": [1, null, \"x\"]}'", "'[]'", "'null'", "'1.50'"]),
    },
    Type {
        name: "jsonb",
        json: Json::Verbatim,
        value: |rng| one_of(rng, &["'{\"b\": 1, \"a\": {\"c\": 0.1}}'", "'\"text\"'", "'[true]'"]),
    },
    Type {
        name: "inet",
        // The cast to text adds a mask that the output function omits.
        json: Json::Native,
        value: |rng| one_of(rng, &["'10.0.0.1/8'", "'::1'"]),
    },
    Type {
        name: "int4range",
        json: Json::Text,
        value: |rng| one_of(rng, &["'[1,5)'", "'empty'"]),
    },
    Type {
        name: "tsvector",
        json: Json::Text,
        value: |rng| one_of(rng, &["to_tsvector('simple', 'a fat cat')", "''"]),
    },
    Type {
        name: "int4[]",
        json: Json::Native,
        value: |rng| one_of(rng, &["'{1,NULL,3}'", "'{}'"]),
    },
    Type {
        name: "int8[]",
        json: Json::Texts,
        value: |rng| one_of(rng, &["'{9007199254740993,NULL}'", "'{}'"]),
    },
    Type {
        name: "text[]",
        json: Json::Native,
        value: |rng| one_of(rng, &["ARRAY['a,b', 'c\"d', NULL, '', 'NULL', '{}']", "'{}'"]),
    },
    Type {
        name: "numeric[]",
        json: Json::Texts,
        value: |rng| one_of(rng, &["'{1.50,NULL,-3}'", "'{}'"]),
    },
    Type {
        name: "bool[]",
        json: Json::Native,
        value: |rng| one_of(rng, &["'{t,f,NULL}'", "'{}'"]),
    },
    Type {
        name: "uuid[]",
        json: Json::Native,
        value: |rng| one_of(rng, &["ARRAY[md5('a')::uuid, NULL]", "'{}'"]),
    },
    Type {
        name: "timestamptz[]",
        json: Json::UtcArray,
        value: |rng| one_of(rng, &["'{2024-02-29 12:34:56.789+02,NULL}'", "'{}'"]),
    },
];

fn one_of(rng: &mut Rng, of: &[&str]) -> String {
    rng.pick(of).to_owned()
}

/// A text; some are stored out of line, and a few have several hundred kilobytes.
fn text(rng: &mut Rng) -> String {
    let digits = format!("{:016x}", rng.number());
    match rng.below(100) {
        0..=3 => format!("repeat('{digits}', {})", 10_000 + rng.below(20_000)),
        4..=24 => format!("repeat('{digits}', {})", 200 + rng.below(1_000)),
        25..=40 => one_of(
            rng,
            &[
                "''",
                "'it''s \"quoted\" \\ back'",
                "E'tab\\tnew\\nline\\r'",
                "'żółć 🦀'",
                "'\\N'",
            ],
        ),
        _ => format!("'{digits}'"),
    }
}

/// An identifier in SQL.
pub fn identifier(name: &str) -> String {
    format!("\"{name}\"")
}
