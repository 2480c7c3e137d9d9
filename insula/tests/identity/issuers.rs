//! Whose a service account's token is, to who has read a tenant's discovery documents and nothing
//! else.

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};

use crate::{
    bare,
    harness::{Cloud, Kubectl},
    with_token,
};

const MAPS: &str = "api/v1/namespaces/default/configmaps";

/// Somebody who trusts an issuer, as libraries of OpenID Connect do.
struct Party {
    issuer: String,
    keys: Vec<Value>,
}

impl Party {
    /// Reads the documents below `prefix`.
    #[track_caller]
    fn reads(cloud: &Cloud, prefix: &str, token: &str) -> Self {
        let get = |path: &str| -> Value {
            let (code, body) = with_token(cloud, &format!("{prefix}{path}"), token);
            assert_eq!(code, 200, "{body}");
            serde_json::from_str(&body).unwrap()
        };
        let about = get("/.well-known/openid-configuration");
        let issuer = about["issuer"].as_str().unwrap().to_owned();
        assert_eq!(about["jwks_uri"], format!("{issuer}/openid/v1/jwks"));
        assert_eq!(about["id_token_signing_alg_values_supported"], json!(["ES256"]));
        let keys = get("/openid/v1/jwks")["keys"].as_array().unwrap().clone();
        Self { issuer, keys }
    }

    /// Whether one of the keys signed a token, whatever it says.
    fn signed(&self, token: &str) -> Option<Value> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_aud = false;
        self.keys.iter().find_map(|it| {
            let (x, y) = (it["x"].as_str().unwrap(), it["y"].as_str().unwrap());
            let key = DecodingKey::from_ec_components(x, y).unwrap();
            Some(jsonwebtoken::decode::<Value>(token, &key, &validation).ok()?.claims)
        })
    }
}

fn token(user: &Kubectl) -> String {
    user.ok(&["create", "token", "default"]).trim().to_owned()
}

#[test]
fn keys_of_a_tenant_believe_no_token_of_another() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let known =
        [("acme", token(&acme)), ("globex", token(&globex)), ("system", token(&cloud.admin()))];
    let parties: Vec<Party> = known
        .iter()
        .map(|(tenant, token)| Party::reads(&cloud, &format!("/tenants/{tenant}"), token))
        .collect();
    assert_eq!(parties[0].issuer, "https://kubernetes.default.svc/tenants/acme");
    assert_eq!(parties[2].issuer, "https://kubernetes.default.svc");
    for (signed, (tenant, token)) in known.iter().enumerate() {
        for (trusted, party) in parties.iter().enumerate() {
            let claims = party.signed(token);
            assert_eq!(claims.is_some(), signed == trusted, "{tenant} by {}", party.issuer);
            if let Some(claims) = claims {
                assert_eq!(claims["iss"], party.issuer);
                assert_eq!(claims["kubernetes.io"]["tenant"], *tenant);
            }
        }
        // Who names no tenant is shown what is its own.
        let own = Party::reads(&cloud, "", token);
        assert_eq!((&own.issuer, &own.keys), (&parties[signed].issuer, &parties[signed].keys));
    }
    // A token is somebody there as here, and has no rights but at home.
    let rights = ["create", "rolebinding", "own", "--clusterrole=view"];
    acme.ok(&[&rights[..], &["--serviceaccount=default:default"]].concat());
    let asks = |tenant: &str, path: &str| {
        with_token(&cloud, &format!("/tenants/{tenant}/{path}"), &known[0].1).0
    };
    assert_eq!((asks("acme", MAPS), asks("globex", MAPS)), (200, 403));
    assert_eq!(asks("globex", "openid/v1/jwks"), 403);
    assert_eq!(bare(&cloud, "/tenants/acme/openid/v1/jwks", &[]).0, 401);
    // Nor does another tenant's server say whose it is.
    for (user, good) in [(&acme, true), (&globex, false)] {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": known[0].1},
        });
        let out = user.feed(&["create", "-o", "json", "-f", "-"], &review.to_string());
        let review: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(review["status"]["authenticated"] == true, good, "{review}");
    }
}
