//! Decisions about requests: which endpoint reads them, which rules allow
//! them, which forbid them.

use std::collections::BTreeMap;

use super::index::{Bundle, Clauses, PathId, Requests, Site};
use super::{Denial, Engine, Reason};
use crate::glob::Pattern;
use crate::http::{Content, GraphQl, JsonRpc, Method, Operation, Request};
use crate::policy::{Inspection, Matcher, Protocol};

/// What a request came to: the endpoint that allowed it, and the refusal it
/// would have had where endpoints only audit.
type Judged = Result<(Site, Option<Denial>), Denial>;

impl Engine {
    fn inspection(&self, site: Site) -> Option<&Inspection> {
        site.of(self.policy()).1.and_then(|endpoint| endpoint.inspection.as_ref())
    }

    /// Judges a request against the inspected endpoints of a host, port and
    /// program. Deny rules win over all others, wherever they stand.
    pub(super) fn judge(&self, request: &Request, bundles: &[&Bundle]) -> Judged {
        let requests: Vec<&Requests> =
            bundles.iter().filter_map(|bundle| bundle.requests.as_deref()).collect();
        let paths = self.index.paths.find(request.target.path());
        let reader = self.reader(&paths, &requests);
        let (Some(reader), any) = (reader, bundles.iter().filter_map(|b| b.inspected).min()) else {
            // Endpoints with paths of their own, and none for this one.
            let nearest = bundles.iter().filter_map(|bundle| bundle.inspected).min();
            return Err(self.denial(Reason::RequestNotAllowed, nearest));
        };
        let Some(inspection) = self.inspection(reader) else {
            return Err(self.denial(Reason::Internal, any));
        };
        if request.target.has_encoded_slash() && !inspection.encoded_slash {
            return Err(self.denial(Reason::Malformed, Some(reader)));
        }
        // A body that could not be read is nobody's to allow, even in audit.
        if malformed(&request.content) || !expected(&request.content, inspection.protocol) {
            return Err(self.denial(Reason::Malformed, Some(reader)));
        }
        let mut denied = requests.iter().find_map(|own| self.denied(request, &paths, own));
        if self.policy().ours && denied.is_none() {
            // What a server may take for another spelling of a denied path.
            denied = other_spellings(request.target.path()).find_map(|path| {
                let paths = self.index.paths.find(&path);
                requests.iter().find_map(|own| self.denied(request, &paths, own))
            });
        }
        let allowed = requests.iter().find_map(|own| self.allowed(request, &paths, own));
        match (denied, allowed) {
            (None, Some(site)) => Ok((site, None)),
            (denied, _) => {
                let denial = match denied {
                    Some(site) => self.denial(Reason::RequestDenied, Some(site)),
                    None => self.denial(Reason::RequestNotAllowed, Some(reader)),
                };
                // In OpenShell's language the reader's word counts. In ours no
                // endpoint that enforces is silenced by one that audits.
                let deciding = denied.into_iter().chain(std::iter::once(reader));
                let audits = |site: Site| self.inspection(site).is_some_and(|own| own.audit);
                let enforcing = || {
                    requests.iter().flat_map(|own| own.readers(&paths)).any(|site| !audits(site))
                };
                let audit = if self.policy().ours {
                    deciding.into_iter().all(audits) && !enforcing()
                } else {
                    inspection.audit
                };
                if audit { Ok((reader, Some(denial))) } else { Err(denial) }
            }
        }
    }

    fn denial(&self, reason: Reason, site: Option<Site>) -> Denial {
        Denial { reason, nearest: site.map(|site| self.reference(site)) }
    }

    /// The endpoint that says how the request is read: the one with the most
    /// specific path. Those with equal ones say the same, or the policy had
    /// been refused.
    fn reader(&self, paths: &[PathId], requests: &[&Requests]) -> Option<Site> {
        requests.iter().flat_map(|own| own.readers(paths)).max_by_key(|site| {
            let own = self.inspection(*site).and_then(|inspection| inspection.path.as_ref());
            let rank = own.map_or((false, 0), |path| (true, path.specificity()));
            (rank, std::cmp::Reverse(*site))
        })
    }

    fn allowed(&self, request: &Request, paths: &[PathId], own: &Requests) -> Option<Site> {
        let by_line = self.clause(request, paths, &own.allow, |query, wanted| {
            wanted.iter().all(|(name, patterns)| {
                let mut values = query.iter().filter(|(own, _)| own == name).peekable();
                values.peek().is_some()
                    && values.all(|(_, value)| patterns.iter().any(|p| p.matches(value)))
            })
        });
        let by_body = || self.body(paths, own, |inspection| body_allowed(request, inspection));
        by_line.or_else(by_body)
    }

    fn denied(&self, request: &Request, paths: &[PathId], own: &Requests) -> Option<Site> {
        let by_line = self.clause(request, paths, &own.deny, any_value_fits);
        let by_body = || self.body(paths, own, |inspection| body_denied(request, inspection));
        by_line.or_else(by_body)
    }

    /// The first endpoint whose rules about bodies say so.
    fn body(
        &self,
        paths: &[PathId],
        own: &Requests,
        says: impl Fn(&Inspection) -> bool,
    ) -> Option<Site> {
        let mut here = own
            .bodies
            .iter()
            .filter(|(path, _)| path.is_none_or(|path| paths.binary_search(&path).is_ok()))
            .map(|(_, site)| *site);
        here.find(|site| self.inspection(*site).is_some_and(&says))
    }

    /// The first rule about method, path and query that covers the request.
    fn clause(
        &self,
        request: &Request,
        paths: &[PathId],
        clauses: &Clauses,
        fits: impl Fn(&[(String, String)], &BTreeMap<String, Vec<Pattern>>) -> bool,
    ) -> Option<Site> {
        let covers = |matcher: &Matcher| match matcher {
            Matcher::Http { method, query, .. } => {
                method_fits(method.as_ref(), &request.method)
                    && fits(request.target.parameters(), query)
            }
            _ => false,
        };
        clauses
            .find(paths)
            .find(|clause| {
                let inspection = self.inspection(clause.site);
                inspection.and_then(|own| clause.matcher(own)).is_some_and(covers)
            })
            .map(|clause| clause.site)
    }
}

/// To deny, one value of each named parameter is enough.
fn any_value_fits(query: &[(String, String)], wanted: &BTreeMap<String, Vec<Pattern>>) -> bool {
    wanted.iter().all(|(name, patterns)| {
        query
            .iter()
            .filter(|(own, _)| own == name)
            .any(|(_, value)| patterns.iter().any(|p| p.matches(value)))
    })
}

/// Whether a deny rule could be why a request is refused.
pub(super) fn may_deny(rule: &Matcher, request: &Request) -> bool {
    match rule {
        Matcher::Http { method, path, query } => {
            method_fits(method.as_ref(), &request.method)
                && path.matches(request.target.path())
                && any_value_fits(request.target.parameters(), query)
        }
        _ => true,
    }
}

/// GET covers HEAD too (RFC 9110 section 9.3.2).
fn method_fits(wanted: Option<&Method>, own: &Method) -> bool {
    wanted
        .is_none_or(|wanted| wanted == own || (wanted.as_str() == "GET" && own.as_str() == "HEAD"))
}

/// Whether a body was read as the endpoint's protocol demands. The proxy does
/// that; here it is made sure of.
fn expected(content: &Content, protocol: Protocol) -> bool {
    match protocol {
        Protocol::Rest | Protocol::Sql => matches!(content, Content::Opaque),
        Protocol::WebSocket => matches!(content, Content::Opaque | Content::GraphQl(_)),
        Protocol::GraphQl => matches!(content, Content::GraphQl(_)),
        Protocol::JsonRpc | Protocol::Mcp => matches!(content, Content::JsonRpc(_)),
    }
}

/// Spellings of a path that servers are known to treat alike: an encoded slash
/// as a slash, and without a slash at the end.
fn other_spellings(path: &str) -> impl Iterator<Item = String> {
    let decoded = path.contains("%2F").then(|| path.replace("%2F", "/"));
    let open = decoded.as_deref().unwrap_or(path);
    let closed = open.strip_suffix('/').filter(|rest| !rest.is_empty()).map(str::to_owned);
    decoded.clone().into_iter().chain(closed).collect::<Vec<_>>().into_iter()
}

fn malformed(content: &Content) -> bool {
    match content {
        Content::GraphQl(body) => body.malformed,
        Content::JsonRpc(body) => body.malformed,
        Content::Opaque | Content::Sql(_) => false,
    }
}

fn body_allowed(request: &Request, inspection: &Inspection) -> bool {
    match (&request.content, inspection.protocol) {
        (Content::GraphQl(body), Protocol::GraphQl | Protocol::WebSocket) => {
            graphql_allowed(body, inspection)
        }
        (Content::JsonRpc(body), Protocol::JsonRpc | Protocol::Mcp) => {
            rpc_allowed(&request.method, body, inspection)
        }
        _ => false,
    }
}

fn body_denied(request: &Request, inspection: &Inspection) -> bool {
    match (&request.content, inspection.protocol) {
        // What such an endpoint reads, a broader rule must not let through.
        (Content::GraphQl(body), Protocol::GraphQl | Protocol::WebSocket) => {
            !graphql_allowed(body, inspection)
                || body.operations.iter().any(|operation| {
                    inspection.deny.iter().any(|rule| graphql_denies(rule, operation, inspection))
                })
        }
        (Content::JsonRpc(body), Protocol::JsonRpc | Protocol::Mcp) => {
            // JSON-RPC, unlike MCP, has no requests that a client could answer.
            (inspection.protocol == Protocol::JsonRpc && body.response)
                || (request.method.as_str() == "POST"
                    && inspection.deny.iter().any(|rule| rpc_fits(rule, body)))
        }
        _ => false,
    }
}

fn graphql_allowed(body: &GraphQl, inspection: &Inspection) -> bool {
    !body.operations.is_empty()
        && body.operations.iter().all(|operation| {
            effective(operation, inspection)
                .is_some_and(|own| inspection.allow.iter().any(|rule| graphql_allows(rule, &own)))
        })
}

/// The operation itself, or the registered one that it names by hash.
fn effective(operation: &Operation, inspection: &Inspection) -> Option<Operation> {
    match &operation.persisted {
        Some(key) if operation.kind.is_empty() => {
            let registered = inspection.registry.as_ref()?.get(key)?;
            Some(Operation {
                kind: registered.kind.clone(),
                name: registered.name.clone(),
                fields: registered.fields.clone(),
                persisted: None,
            })
        }
        _ => Some(operation.clone()),
    }
}

fn graphql_shape(kind: Option<&String>, name: Option<&Pattern>, operation: &Operation) -> bool {
    kind.is_none_or(|kind| kind.eq_ignore_ascii_case(&operation.kind))
        && name.is_none_or(|name| name.matches(&operation.name))
}

fn graphql_allows(rule: &Matcher, operation: &Operation) -> bool {
    let Matcher::GraphQl { kind, name, fields } = rule else { return false };
    graphql_shape(kind.as_ref(), name.as_ref(), operation)
        && (fields.is_empty()
            || (!operation.fields.is_empty()
                && operation.fields.iter().all(|own| fields.iter().any(|f| f.matches(own)))))
}

fn graphql_denies(rule: &Matcher, operation: &Operation, inspection: &Inspection) -> bool {
    let Matcher::GraphQl { kind, name, fields } = rule else { return false };
    effective(operation, inspection).is_some_and(|operation| {
        graphql_shape(kind.as_ref(), name.as_ref(), &operation)
            && (fields.is_empty()
                || operation.fields.iter().any(|own| fields.iter().any(|f| f.matches(own))))
    })
}

fn rpc_allowed(method: &Method, body: &JsonRpc, inspection: &Inspection) -> bool {
    let mcp = inspection.protocol == Protocol::Mcp;
    // MCP's streams only receive; its clients answer the server's requests.
    if mcp && method.as_str() == "GET" {
        return body.receive_stream && body.method.is_empty() && !body.response;
    }
    if method.as_str() != "POST" {
        return false;
    }
    if body.response {
        return mcp;
    }
    let narrowed = body.method == "tools/call"
        && inspection
            .allow
            .iter()
            .any(|rule| matches!(rule, Matcher::Rpc { tool, .. } if !tool.is_empty()));
    (mcp && inspection.all_mcp_methods && !body.method.is_empty() && !narrowed)
        || inspection.allow.iter().any(|rule| rpc_fits(rule, body))
}

fn rpc_fits(rule: &Matcher, body: &JsonRpc) -> bool {
    let Matcher::Rpc { method, tool } = rule else { return false };
    !body.method.is_empty()
        && method.as_ref().is_none_or(|method| method.matches(&body.method))
        && (tool.is_empty()
            || body.tool.as_ref().is_some_and(|own| tool.iter().any(|t| t.matches(own))))
}
