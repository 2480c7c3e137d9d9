//! A key pair that signs tokens: ECDSA on P-256, which every reader of tokens knows.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use rcgen::KeyPair;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};

use super::KeyError;
use crate::pki::PkiError;

/// See the module.
pub(crate) struct Pair {
    id: String,
    /// What the tokens that we sign with it begin with: nothing has to be read to know them.
    head: String,
    pub(super) encoding: EncodingKey,
    pub(super) decoding: DecodingKey,
    /// `x` and `y` of the public point, base64url.
    point: (String, String),
}

/// A private key, if it is one of the curve.
pub(super) fn read(private: &PrivateKeyDer<'_>) -> Result<KeyPair, KeyError> {
    let pair = KeyPair::try_from(private).map_err(PkiError::from)?;
    match pair.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256) {
        true => Ok(pair),
        false => Err(KeyError::OtherKind),
    }
}

impl Pair {
    /// One that is known by this name.
    pub(super) fn new(pair: &KeyPair, id: String) -> Result<Self, KeyError> {
        let unusable = |error| KeyError::Unusable(Box::new(error));
        let encoding =
            EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).map_err(unusable)?;
        let public = pair.public_key_pem();
        let decoding = DecodingKey::from_ec_pem(public.as_bytes()).map_err(unusable)?;
        // The raw key is the uncompressed point: 0x04, x, y.
        let point = pair.public_key_raw().get(1..65);
        let (x, y) = point.map(|point| point.split_at(32)).unwrap_or_default();
        let header = serde_json::to_vec(&header(&id))
            .map_err(|error| KeyError::Unusable(Box::new(error)))?;
        let url = URL_SAFE_NO_PAD;
        Ok(Self {
            head: format!("{}.", url.encode(header)),
            id,
            encoding,
            decoding,
            point: (url.encode(x), url.encode(y)),
        })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn header(&self) -> Header {
        header(&self.id)
    }

    /// Whether a token says that we signed it with this.
    pub(super) fn begins(&self, token: &str) -> bool {
        token.starts_with(&self.head)
    }

    /// The public key, as others read it.
    pub(super) fn jwk(&self) -> Value {
        json!({
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": self.point.0, "y": self.point.1,
        })
    }
}

fn header(id: &str) -> Header {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(id.to_owned());
    header
}
