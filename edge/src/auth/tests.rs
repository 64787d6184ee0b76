//! Tokens of each algorithm, each reason for a rejection, and rotation of keys behind a URL.

use super::*;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header as JwtHeader, encode};
use serde_json::json;
use service::Secret;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const NOW_MS: i64 = 1_732_390_000_000;
const NOW_S: i64 = NOW_MS / 1_000;
const ISS: &str = "https://id.example.com/";
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A signing key with its public key.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    public_pem: String,
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|l| std::str::from_utf8(l).unwrap())
        .collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

impl Signer {
    fn new(algorithm: Algorithm) -> Self {
        let (key, public) = match algorithm {
            Algorithm::HS256 => (EncodingKey::from_secret(SECRET.as_bytes()), Vec::new()),
            Algorithm::RS256 => {
                let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
                let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
                let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
                let key = EncodingKey::from_rsa_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes()).unwrap();
                (key, public.as_ref().to_vec())
            }
            Algorithm::ES256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
                let private = pair.to_pkcs8v1().unwrap();
                let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
                (EncodingKey::from_ec_der(private.as_ref()), public.as_ref().to_vec())
            }
            Algorithm::EdDSA => {
                let pair = Ed25519KeyPair::generate().unwrap();
                let private = pair.to_pkcs8v1().unwrap();
                let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
                (EncodingKey::from_ed_der(private.as_ref()), public.as_ref().to_vec())
            }
        };
        Signer {
            algorithm,
            key,
            public_pem: pem("PUBLIC KEY", &public),
        }
    }

    fn library(&self) -> jsonwebtoken::Algorithm {
        self.algorithm.name().parse().unwrap()
    }

    fn jwk(&self, kid: Option<&str>) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.library()).unwrap();
        jwk.common.key_id = kid.map(str::to_owned);
        serde_json::to_value(jwk).unwrap()
    }

    fn sign(&self, kid: Option<&str>, claims: &Value) -> String {
        let mut header = JwtHeader::new(self.library());
        header.kid = kid.map(str::to_owned);
        encode(&header, claims, &self.key).unwrap()
    }
}

fn claims() -> Value {
    json!({"iss": ISS, "aud": "trunkline", "sub": "42", "exp": NOW_S + 600, "iat": NOW_S})
}

fn with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            _ => claims[name] = value.clone(),
        }
    }
    claims
}

fn issuer(algorithm: Algorithm) -> IssuerConfig {
    IssuerConfig::new("main", ISS, "trunkline", &[algorithm])
}

fn hs256() -> IssuerConfig {
    IssuerConfig {
        secret: Some(Secret::new(SECRET)),
        ..issuer(Algorithm::HS256)
    }
}

fn jwks(keys: &[Value]) -> Option<Secret> {
    Some(Secret::new(json!({ "keys": keys }).to_string()))
}

async fn verify(config: IssuerConfig, token: &str) -> Result<Identity, AuthError> {
    Authenticator::new(&[config])
        .map_err(|e| e.to_string())
        .unwrap()
        .verify(token, NOW_MS)
        .await
}

#[tokio::test]
async fn each_algorithm_verifies_by_jwks_and_pem_or_secret() {
    for algorithm in [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA] {
        let signer = Signer::new(algorithm);
        let other = Signer::new(if algorithm == Algorithm::HS256 {
            Algorithm::EdDSA
        } else {
            algorithm
        });
        let by_jwks = IssuerConfig {
            jwks: jwks(&[other.jwk(Some("old")), signer.jwk(Some("new"))]),
            ..issuer(algorithm)
        };
        let by_text = if algorithm == Algorithm::HS256 {
            hs256()
        } else {
            IssuerConfig {
                pem: Some(Secret::new(&signer.public_pem)),
                ..issuer(algorithm)
            }
        };
        for (config, kid) in [(by_jwks.clone(), Some("new")), (by_jwks, None), (by_text, None)] {
            let token = signer.sign(kid, &claims());
            let identity = verify(config.clone(), &token).await.unwrap();
            assert_eq!(identity.principal.to_string(), "main:42");
            assert_eq!(identity.expires_ms, NOW_MS + 630_000);
            let broken = format!("{}A", token.get(..token.len() - 1).unwrap());
            let broken = if broken == token {
                format!("{}Q", &token[..token.len() - 1])
            } else {
                broken
            };
            assert_eq!(
                verify(config.clone(), &broken).await,
                Err(AuthError::Signature),
                "{algorithm:?} {kid:?}"
            );
            let (head, rest) = token.split_once('.').unwrap();
            let (_, signature) = rest.split_once('.').unwrap();
            let forged = URL_SAFE_NO_PAD.encode(with(json!({"sub": "1"})).to_string());
            assert_eq!(
                verify(config, &format!("{head}.{forged}.{signature}")).await,
                Err(AuthError::Signature)
            );
        }
    }
}

#[tokio::test]
async fn public_key_is_not_an_hmac_secret() {
    let signer = Signer::new(Algorithm::RS256);
    let config = IssuerConfig {
        pem: Some(Secret::new(&signer.public_pem)),
        ..issuer(Algorithm::RS256)
    };
    let key = EncodingKey::from_secret(signer.public_pem.as_bytes());
    let token = encode(&JwtHeader::new(jsonwebtoken::Algorithm::HS256), &claims(), &key).unwrap();
    assert_eq!(verify(config, &token).await, Err(AuthError::Algorithm));
    // A key verifies only what its type allows, even if the issuer accepts the algorithm.
    let config = IssuerConfig {
        jwks: jwks(&[signer.jwk(None)]),
        ..issuer(Algorithm::RS256)
    };
    let both = IssuerConfig {
        algorithms: vec![Algorithm::RS256, Algorithm::ES256],
        ..config
    };
    let token = Signer::new(Algorithm::ES256).sign(None, &claims());
    assert_eq!(verify(both, &token).await, Err(AuthError::UnknownKey));
}

#[tokio::test]
async fn unsigned_and_malformed_tokens_are_rejected() {
    let good = Signer::new(Algorithm::HS256).sign(None, &claims());
    let (_, rest) = good.split_once('.').unwrap();
    let (payload, signature) = rest.split_once('.').unwrap();
    let header = |json: &str| URL_SAFE_NO_PAD.encode(json);
    let cases = [
        (
            format!("{}.{payload}.", header(r#"{"alg":"none"}"#)),
            AuthError::Algorithm,
        ),
        (
            format!("{}.{payload}.{signature}", header(r#"{"alg":"HS512"}"#)),
            AuthError::Algorithm,
        ),
        (
            format!("{}.{payload}.{signature}", header(r#"{"alg":"HS256","crit":["exp"]}"#)),
            AuthError::Malformed("the header has `crit`, but no extension is supported"),
        ),
        (
            format!("{}.{payload}.{signature}", header("[]")),
            AuthError::Malformed("the header is not a base64url-encoded JSON object with `alg`"),
        ),
        (
            format!("{}.{}.{signature}", header(r#"{"alg":"HS256"}"#), header("7")),
            AuthError::Malformed("the payload is not a base64url-encoded JSON object"),
        ),
        (String::new(), AuthError::Malformed("not three parts separated by dots")),
        ("a.b".into(), AuthError::Malformed("not three parts separated by dots")),
        (
            format!("{good}.x"),
            AuthError::Malformed("not three parts separated by dots"),
        ),
        ("x".repeat(9_000), AuthError::Malformed("longer than 8 KiB")),
    ];
    for (token, want) in cases {
        assert_eq!(verify(hs256(), &token).await, Err(want), "{token:.60}");
    }
}

#[tokio::test]
async fn each_invalid_claim_rejects_the_token() {
    let signer = Signer::new(Algorithm::HS256);
    let aged = IssuerConfig {
        max_age_s: Some(60),
        ..hs256()
    };
    let claim = |name: &str| AuthError::Claim(name.into());
    let cases = [
        (hs256(), json!({"iss": "https://other/"}), AuthError::Issuer),
        (hs256(), json!({"iss": null}), AuthError::Issuer),
        (hs256(), json!({"aud": null}), AuthError::Audience),
        (hs256(), json!({"aud": "other"}), AuthError::Audience),
        (hs256(), json!({"aud": ["other", 7]}), AuthError::Audience),
        (hs256(), json!({"exp": null}), claim("exp")),
        (hs256(), json!({"exp": "soon"}), claim("exp")),
        (hs256(), json!({"exp": NOW_S - 30}), AuthError::Expired),
        (hs256(), json!({"nbf": NOW_S + 31}), AuthError::NotYetValid("nbf")),
        (hs256(), json!({"iat": NOW_S + 31}), AuthError::NotYetValid("iat")),
        (hs256(), json!({"sub": null}), claim("sub")),
        (hs256(), json!({"sub": ""}), claim("sub")),
        (hs256(), json!({"sub": "a\nb"}), claim("sub")),
        (hs256(), json!({"sub": {"id": 1}}), claim("sub")),
        (aged.clone(), json!({"iat": NOW_S - 91}), AuthError::TooOld),
        (aged, json!({"iat": null}), claim("iat")),
    ];
    for (config, change, want) in cases {
        let token = signer.sign(None, &with(change.clone()));
        assert_eq!(verify(config, &token).await, Err(want), "{change}");
    }
    for change in [
        json!({"exp": NOW_S - 29}),
        json!({"nbf": NOW_S + 30}),
        json!({"exp": 1_732_390_000.5}),
        json!({"aud": ["a", "trunkline"]}),
    ] {
        assert!(
            verify(hs256(), &signer.sign(None, &with(change.clone()))).await.is_ok(),
            "{change}"
        );
    }
}

#[tokio::test]
async fn claims_are_mapped_to_membership_names() {
    let names = [
        ("store", "https://example.com/stores"),
        ("role", "realm.roles"),
        ("team", "crew"),
    ];
    let config = IssuerConfig {
        subject_claim: "user.id".into(),
        claims: names.into_iter().map(|(a, b)| (a.into(), b.into())).collect(),
        ..hs256()
    };
    let sent = with(json!({
        "user": {"id": 7}, "https://example.com/stores": ["1", 2], "realm": {"roles": []}, "admin": true, "team": "x",
    }));
    let token = Signer::new(Algorithm::HS256).sign(None, &sent);
    let identity = verify(config, &token).await.unwrap();
    assert_eq!(identity.principal.to_string(), "main:7");
    let claim = |name: &str| identity.claims.get(name).cloned();
    assert_eq!(claim("sub"), Some(json!("7")));
    assert_eq!(
        (claim("store"), claim("role")),
        (Some(json!(["1", 2])), Some(json!([])))
    );
    assert_eq!(
        (claim("team"), claim("admin")),
        (None, Some(json!(true))),
        "a mapped name is never another claim"
    );
}

#[tokio::test]
async fn issuers_do_not_share_keys_or_principals() {
    let (first, second) = (Signer::new(Algorithm::EdDSA), Signer::new(Algorithm::EdDSA));
    let config = |alias: &str, iss: &str, signer: &Signer| IssuerConfig {
        alias: alias.into(),
        issuer: iss.into(),
        pem: Some(Secret::new(&signer.public_pem)),
        ..issuer(Algorithm::EdDSA)
    };
    let auth = Authenticator::new(&[
        config("one", "https://one/", &first),
        config("two", "https://two/", &second),
    ])
    .unwrap();
    let token = second.sign(None, &with(json!({"iss": "https://two/"})));
    assert_eq!(
        auth.verify(&token, NOW_MS).await.unwrap().principal.to_string(),
        "two:42"
    );
    let token = first.sign(None, &with(json!({"iss": "https://two/"})));
    assert_eq!(auth.verify(&token, NOW_MS).await, Err(AuthError::Signature));
}

#[test]
fn unusable_keys_are_rejected_at_start() {
    let rsa = Signer::new(Algorithm::RS256);
    let ed = Signer::new(Algorithm::EdDSA);
    let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n";
    let mut small = rsa.jwk(None);
    small["n"] = json!(URL_SAFE_NO_PAD.encode([0xff_u8; 128]));
    let mut encryption = rsa.jwk(None);
    encryption["use"] = json!("enc");
    let mut other = rsa.jwk(None);
    other["alg"] = json!("PS256");
    let unknown = json!({"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"});
    let rs = |jwks: Option<Secret>| IssuerConfig {
        jwks,
        ..issuer(Algorithm::RS256)
    };
    let pem = |text: &str| IssuerConfig {
        pem: Some(Secret::new(text)),
        ..issuer(Algorithm::EdDSA)
    };
    let cases = [
        (
            rs(Some(Secret::new("{}"))),
            "edge.issuers[0].jwks: is not a JWKS document",
        ),
        (rs(jwks(&[])), "has no usable signing key"),
        (rs(jwks(&[small])), "an RSA key below 2048 bits"),
        (rs(jwks(&[encryption])), "a key that is not for signatures"),
        (rs(jwks(&[other])), "a key for another algorithm"),
        (rs(jwks(&[unknown])), "has no usable signing key"),
        (rs(jwks(&[ed.jwk(None)])), "has no key for the algorithms"),
        (pem(private), "is a private key"),
        (pem("nonsense"), "is not a public key in PEM"),
        (pem(&rsa.public_pem), "has no key for the algorithms"),
        (
            IssuerConfig {
                secret: Some(Secret::new("short")),
                ..hs256()
            },
            "has 5 bytes but HS256 requires 32",
        ),
        (
            IssuerConfig {
                jwks_url: Some("http://id.example.com/k".into()),
                ..issuer(Algorithm::RS256)
            },
            "must be https",
        ),
        (
            IssuerConfig {
                jwks_url: Some("nonsense".into()),
                ..issuer(Algorithm::RS256)
            },
            "is not a URL",
        ),
    ];
    for (config, want) in cases {
        let got = Authenticator::new(&[config]).err().expect(want).to_string();
        assert!(got.contains(want), "{got:?} does not contain {want:?}");
    }
}

/// A JWKS server that counts requests and whose response can be changed.
struct Server {
    url: String,
    keys: Arc<std::sync::Mutex<Vec<Value>>>,
    broken: Arc<AtomicBool>,
    fetches: Arc<AtomicUsize>,
    task: tokio::task::JoinSet<()>,
}

impl Server {
    async fn start(keys: &[Value]) -> Self {
        let keys = Arc::new(std::sync::Mutex::new(keys.to_vec()));
        let (broken, fetches) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (k, b, f) = (keys.clone(), broken.clone(), fetches.clone());
        let answer = move || {
            f.fetch_add(1, Ordering::SeqCst);
            let body = json!({ "keys": *k.lock().unwrap() }).to_string();
            let status = if b.load(Ordering::SeqCst) { 500 } else { 200 };
            async move { (axum::http::StatusCode::from_u16(status).unwrap(), body) }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap());
        let mut task = tokio::task::JoinSet::new();
        let router = axum::Router::new().route("/jwks", axum::routing::get(answer));
        task.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Server {
            url,
            keys,
            broken,
            fetches,
            task,
        }
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    fn config(&self) -> IssuerConfig {
        IssuerConfig {
            jwks_url: Some(self.url.clone()),
            ..issuer(Algorithm::EdDSA)
        }
    }
}

#[tokio::test]
async fn unknown_key_ids_cause_one_fetch_per_interval() {
    let (old, new) = (Signer::new(Algorithm::EdDSA), Signer::new(Algorithm::EdDSA));
    let server = Server::start(&[old.jwk(Some("old"))]).await;
    let auth = Authenticator::new(&[server.config()]).unwrap();
    let (by_old, by_new) = (old.sign(Some("old"), &claims()), new.sign(Some("new"), &claims()));
    let (one, two) = tokio::join!(auth.verify(&by_old, NOW_MS), auth.verify(&by_old, NOW_MS));
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(server.fetches(), 1, "the first fetch is shared");
    *server.keys.lock().unwrap() = vec![new.jwk(Some("new"))];
    let (one, two) = tokio::join!(auth.verify(&by_new, NOW_MS), auth.verify(&by_new, NOW_MS));
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(server.fetches(), 2, "an unknown key id causes one fetch");
    assert_eq!(auth.verify(&by_old, NOW_MS).await, Err(AuthError::UnknownKey));
    for n in 0..50 {
        let token = new.sign(Some(&format!("made-up-{n}")), &claims());
        assert_eq!(auth.verify(&token, NOW_MS).await, Err(AuthError::UnknownKey));
    }
    assert_eq!(server.fetches(), 2, "no further fetch within the interval");
}

#[tokio::test]
async fn shared_secret_in_fetched_jwks_is_skipped() {
    let signer = Signer::new(Algorithm::HS256);
    let server = Server::start(&[signer.jwk(Some("a"))]).await;
    let config = IssuerConfig {
        algorithms: vec![Algorithm::HS256],
        ..server.config()
    };
    let auth = Authenticator::new(&[config]).unwrap();
    let result = auth.verify(&signer.sign(Some("a"), &claims()), NOW_MS).await;
    assert_eq!(result, Err(AuthError::KeysUnavailable("main".into())));
    assert!(
        auth.problems(NOW_MS)
            .join("")
            .contains("a shared secret in a public document"),
        "{:?}",
        auth.problems(NOW_MS)
    );
}

#[tokio::test]
async fn stale_keys_are_used_for_a_limited_time() {
    let signer = Signer::new(Algorithm::EdDSA);
    let server = Server::start(&[signer.jwk(None)]).await;
    let config = IssuerConfig {
        jwks_refresh_s: 600,
        jwks_stale_s: 3_600,
        ..server.config()
    };
    let auth = Authenticator::new(&[config]).unwrap();
    let token = signer.sign(None, &with(json!({"exp": NOW_S + 100_000})));
    let remote = auth.issuers[0].remote().unwrap().clone();
    assert!(!auth.problems(NOW_MS).is_empty());
    assert_eq!(remote.refresh_if_due(NOW_MS).await, Duration::from_secs(600));
    assert!(auth.problems(NOW_MS).is_empty());
    server.broken.store(true, Ordering::SeqCst);
    let later = NOW_MS + 600_000;
    assert_eq!(
        remote.refresh_if_due(later).await,
        jwks::RETRY,
        "a failed refresh is retried soon"
    );
    assert_eq!(server.fetches(), 2);
    assert!(auth.verify(&token, later).await.is_ok(), "stale keys are used");
    let later = later + 3_600_001;
    assert_eq!(
        auth.verify(&token, later).await,
        Err(AuthError::KeysUnavailable("main".into()))
    );
    assert!(
        auth.problems(later).join("").contains("answered 500"),
        "{:?}",
        auth.problems(later)
    );
    server.broken.store(false, Ordering::SeqCst);
    assert_eq!(
        auth.verify(&token, later + 1).await,
        Err(AuthError::KeysUnavailable("main".into())),
        "not before the retry interval"
    );
    assert!(
        auth.verify(&token, later + 2_000).await.is_ok(),
        "recovers after the retry interval"
    );
    drop(server.task);
}
