//! How callers prove who they are, and the rights that rules give them: users with bcrypt hashes,
//! tokens of an authorization service, rules by repository. Pure, except for the check of a
//! password, which runs on a thread of low priority. Authorization is decided in `access_control`.

pub(crate) mod htpasswd;
pub(crate) mod keys;
pub(crate) mod logins;
pub(crate) mod rules;
pub(crate) mod token;
