//! How callers prove who they are, and what rules give them: users with bcrypt hashes, tokens of an
//! authorization service, rules by repository. Pure but for the one check that costs time, which
//! runs on a thread of low priority. Authorization is decided in `access_control`.

pub(crate) mod htpasswd;
pub(crate) mod keys;
pub(crate) mod logins;
pub(crate) mod rules;
pub(crate) mod token;
