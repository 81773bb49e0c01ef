//! Turns a component's bytes into a callable policy: examine, compile or load from the cache, link, introduce.
//!
//! This module does not depend on refreshes. [`super::Policy`] makes the calls and checks their answers.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use super::bindings::{self, RefreshPolicyPre};
use super::cache::{self, Cache};
use super::compile::Compiled;
use super::instance::HostState;
use super::isolation::Isolation;
use super::limits::Times;
use super::{Examined, Metering, Policy, PolicyError, Task, configuration, tick, wasi};

/// Compiles and links policies. A process needs one, because its clock is a thread.
pub struct PolicyEngine {
    engine: Engine,
    /// What the host offers to guests.
    linker: Linker<HostState>,
    isolation: Isolation,
    cache: Option<Arc<Cache>>,
    times: Times,
    metering: Metering,
}

/// A compiled component that is not linked yet.
pub struct CompiledPolicy {
    examined: Examined,
    component: Component,
}

/// A component that fits the functions of this host and has not been called yet.
pub struct LinkedPolicy(Policy);

fn linker(engine: &Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    wasi::link(&mut linker)?;
    bindings::RefreshPolicy::add_to_linker::<_, wasmtime::component::HasSelf<_>>(
        &mut linker,
        |state: &mut HostState| state,
    )?;
    Ok(linker)
}

impl PolicyEngine {
    /// An engine that compiles in this process, if there is a compiler, and caches nothing.
    pub fn new() -> Result<Self, PolicyError> {
        Self::with_times(Times::default())
    }

    /// An engine with other time limits, for tests that exceed them.
    pub fn with_times(times: Times) -> Result<Self, PolicyError> {
        Self::from_settings(times, Metering::Off)
    }

    /// An engine whose policies report [`Cost::instructions`](super::Cost::instructions).
    pub fn metering() -> Result<Self, PolicyError> {
        Self::from_settings(Times::default(), Metering::Instructions)
    }

    fn from_settings(times: Times, metering: Metering) -> Result<Self, PolicyError> {
        let engine = Engine::new(&configuration(metering)).map_err(PolicyError::host)?;
        let linker = linker(&engine).map_err(PolicyError::host)?;
        tick(&engine);
        Ok(Self {
            engine,
            linker,
            isolation: Isolation::default(),
            cache: None,
            times,
            metering,
        })
    }

    #[must_use]
    pub fn with_isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Cache compiled code in this folder, which no other program should use. See `cache`.
    #[must_use]
    pub fn with_cache(mut self, folder: PathBuf) -> Self {
        self.cache = Some(Arc::new(Cache::new(folder)));
        self
    }

    /// Do all steps from bytes to a callable policy. `origin` names the source of the bytes, for people.
    pub async fn load(&self, bytes: impl Into<Bytes>, origin: &str) -> Result<Policy, PolicyError> {
        let examined = self.examine(bytes.into(), origin).await?;
        self.check_contract(&examined)?;
        let compiled = self.compile(examined).await?;
        self.introduce(self.link(compiled)?).await
    }

    /// Check that the bytes are a valid component, and list its imports and exports. This compiles and runs nothing.
    pub async fn examine(&self, bytes: Bytes, origin: &str) -> Result<Examined, PolicyError> {
        self.isolation.examine(bytes, origin).await
    }

    /// Check that the component uses our contract and imports nothing else.
    pub fn check_contract(&self, examined: &Examined) -> Result<(), PolicyError> {
        examined.check_contract()
    }

    /// Load the code from the cache, or compile it: a tenth of a second (Rust) to many seconds (Python).
    pub async fn compile(&self, examined: Examined) -> Result<CompiledPolicy, PolicyError> {
        let component = match self.load_from_cache(&examined).await {
            Some(component) => component,
            None => {
                let code = self.compile_code(&examined).await?;
                self.store_in_cache(&examined, &code).await;
                self.adopt(code).await?
            }
        };
        Ok(CompiledPolicy {
            examined,
            component,
        })
    }

    #[cfg(feature = "compiler")]
    async fn compile_code(&self, examined: &Examined) -> Result<Compiled, PolicyError> {
        let (engine, origin) = (&self.engine, &examined.origin);
        self.isolation
            .compile(engine, self.metering, &examined.bytes, origin)
            .await
    }

    #[cfg(not(feature = "compiler"))]
    #[expect(clippy::unused_async, reason = "a compiler would be waited for")]
    async fn compile_code(&self, examined: &Examined) -> Result<Compiled, PolicyError> {
        Err(PolicyError::NoCompiler {
            origin: examined.origin.clone(),
        })
    }

    async fn adopt(&self, code: Compiled) -> Result<Component, PolicyError> {
        let engine = self.engine.clone();
        match tokio::task::spawn_blocking(move || code.adopt(&engine)).await {
            Ok(component) => component.map_err(PolicyError::host),
            Err(panicked) => Err(PolicyError::Host(panicked.to_string())),
        }
    }

    /// Check that this host offers each imported function with the expected types, and that the component exports what we call.
    pub fn link(&self, compiled: CompiledPolicy) -> Result<LinkedPolicy, PolicyError> {
        let CompiledPolicy {
            examined,
            component,
        } = compiled;
        let linked = self
            .linker
            .instantiate_pre(&component)
            .and_then(RefreshPolicyPre::new);
        Ok(LinkedPolicy(Policy {
            name: examined.origin.clone(),
            version: String::new(),
            summary: String::new(),
            config_schema: String::new(),
            digest: examined.digest,
            imports: examined.imports,
            engine: self.engine.clone(),
            times: self.times,
            metering: self.metering,
            pre: linked.map_err(|cause| PolicyError::from_link_error(&examined.origin, &cause))?,
        }))
    }

    /// Make the first call, in which the policy gives its name and version.
    pub async fn introduce(&self, linked: LinkedPolicy) -> Result<Policy, PolicyError> {
        let LinkedPolicy(mut policy) = linked;
        let described = policy
            .probe(Task::Describe, |guest, store| {
                Box::pin(guest.refit_policy_policy().call_describe(store))
            })
            .await?;
        policy.introduce(described)?;
        Ok(policy)
    }

    /// Load usable code from the cache.
    async fn load_from_cache(&self, examined: &Examined) -> Option<Component> {
        let cache = self.cache.clone()?;
        let names = match self.cache_name(examined) {
            Some(name) => vec![name],
            // Try all entries: wasmtime refuses the code that it cannot use.
            None => {
                let (cache, component) = (cache.clone(), Sha256::digest(&examined.bytes).into());
                let names =
                    tokio::task::spawn_blocking(move || cache.entry_names(&component)).await;
                names.unwrap_or_default()
            }
        };
        for name in names {
            let cache = cache.clone();
            let found = tokio::task::spawn_blocking(move || cache.get(&name)).await;
            let Some(code) = found.ok().flatten() else {
                continue;
            };
            if let Ok(component) = self.adopt(Compiled::unsealed(code)).await {
                return Some(component);
            }
        }
        None
    }

    async fn store_in_cache(&self, examined: &Examined, code: &Compiled) {
        let (Some(cache), Some(name)) = (self.cache.clone(), self.cache_name(examined)) else {
            return;
        };
        let code = code.code().clone();
        // If it fails, the cache has logged that already.
        let _ = tokio::task::spawn_blocking(move || cache.put(&name, &code)).await;
    }

    /// Only a compiler can describe its settings.
    #[cfg(not(feature = "compiler"))]
    fn cache_name(&self, _: &Examined) -> Option<cache::Name> {
        None
    }

    #[cfg(feature = "compiler")]
    fn cache_name(&self, examined: &Examined) -> Option<cache::Name> {
        use std::hash::Hash as _;
        /// Collects the hashed bytes, because `std` has no hash that is stable across processes.
        struct HashCollector(Sha256);
        impl std::hash::Hasher for HashCollector {
            fn write(&mut self, bytes: &[u8]) {
                self.0.update(bytes);
            }
            fn finish(&self) -> u64 {
                0
            }
        }
        let mut compatibility = HashCollector(Sha256::new());
        self.engine
            .precompile_compatibility_hash()
            .hash(&mut compatibility);
        Some(cache::Name {
            component: Sha256::digest(&examined.bytes).into(),
            compatibility: compatibility.0.finalize().into(),
        })
    }
}
