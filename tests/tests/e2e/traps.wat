;; A policy by hand: `describe` and `validate-config` answer, `refresh` traps.
(component
  (core module $code
    (memory (export "memory") 1)
    (data (i32.const 1024) "traps0.1.0it traps")
    ;; A description is four strings: where each begins, and how long it is. The schema is empty.
    (data (i32.const 2048)
      "\00\04\00\00" "\05\00\00\00"
      "\05\04\00\00" "\05\00\00\00"
      "\0a\04\00\00" "\08\00\00\00"
      "\00\00\00\00" "\00\00\00\00")
    ;; Nothing that it is handed is ever looked at, so all of it may lie in one place.
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 8192)
    (func (export "describe") (result i32) i32.const 2048)
    ;; Memory is zero where nobody wrote: the first case, which is `ok`.
    (func (export "validate-config") (param i32 i32) (result i32) i32.const 4096)
    (func (export "refresh") (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) unreachable))
  (core instance $code (instantiate $code))

  ;; The contract's types, from `wit/policy.wit`.
  (type $description (record
    (field "name" string) (field "version" string) (field "summary" string) (field "config-schema" string)))
  (type $config-problem (record (field "path" string) (field "problem" string)))
  (type $trigger (enum "operator" "api" "schedule" "webhook"))
  (type $request (record
    (field "trigger" $trigger) (field "targets" (list string)) (field "images" (list string))
    (field "recreate" bool) (field "force" bool)))
  (type $target (record (field "name" string) (field "image" string)))
  (type $verdict (enum "recreate" "current" "stale" "unknown" "leave"))
  (type $decision (record
    (field "container" string) (field "verdict" $verdict) (field "rule" string) (field "reason" string)))
  (type $report (record (field "targets" (list $target)) (field "decisions" (list $decision))))
  (type $unknown-targets (record (field "asked" (list string)) (field "known" (list string))))
  (type $engine-error (variant
    (case "denied" string) (case "not-found") (case "unavailable" string) (case "quota-exceeded" string)
    (case "cancelled") (case "other" string)))
  (type $failure (variant
    (case "unknown-targets" $unknown-targets) (case "invalid-config" (list $config-problem))
    (case "engine" $engine-error) (case "other" string)))

  (func $describe (result $description)
    (canon lift (core func $code "describe") (memory $code "memory")))
  (func $validate-config (param "config" string) (result (result (error (list $config-problem))))
    (canon lift (core func $code "validate-config") (memory $code "memory") (realloc (func $code "realloc"))))
  (func $refresh (param "request" $request) (param "config" string) (result (result $report (error $failure)))
    (canon lift (core func $code "refresh") (memory $code "memory") (realloc (func $code "realloc"))))

  ;; An instance's functions may only name types that it exports too, so they go through a component that does.
  (component $naming
    (type $description' (record
      (field "name" string) (field "version" string) (field "summary" string) (field "config-schema" string)))
    (import "description" (type $description (eq $description')))
    (type $config-problem' (record (field "path" string) (field "problem" string)))
    (import "config-problem" (type $config-problem (eq $config-problem')))
    (type $trigger' (enum "operator" "api" "schedule" "webhook"))
    (import "trigger" (type $trigger (eq $trigger')))
    (type $request' (record
      (field "trigger" $trigger) (field "targets" (list string)) (field "images" (list string))
      (field "recreate" bool) (field "force" bool)))
    (import "request" (type $request (eq $request')))
    (type $target' (record (field "name" string) (field "image" string)))
    (import "target" (type $target (eq $target')))
    (type $verdict' (enum "recreate" "current" "stale" "unknown" "leave"))
    (import "verdict" (type $verdict (eq $verdict')))
    (type $decision' (record
      (field "container" string) (field "verdict" $verdict) (field "rule" string) (field "reason" string)))
    (import "decision" (type $decision (eq $decision')))
    (type $report' (record (field "targets" (list $target)) (field "decisions" (list $decision))))
    (import "report" (type $report (eq $report')))
    (type $unknown-targets' (record (field "asked" (list string)) (field "known" (list string))))
    (import "unknown-targets" (type $unknown-targets (eq $unknown-targets')))
    (type $engine-error' (variant
      (case "denied" string) (case "not-found") (case "unavailable" string) (case "quota-exceeded" string)
      (case "cancelled") (case "other" string)))
    (import "engine-error" (type $engine-error (eq $engine-error')))
    (type $failure' (variant
      (case "unknown-targets" $unknown-targets) (case "invalid-config" (list $config-problem))
      (case "engine" $engine-error) (case "other" string)))
    (import "failure" (type $failure (eq $failure')))
    (import "describe" (func $describe (result $description)))
    (import "validate-config" (func $validate-config
      (param "config" string) (result (result (error (list $config-problem))))))
    (import "refresh" (func $refresh
      (param "request" $request) (param "config" string) (result (result $report (error $failure)))))

    (export $d "description" (type $description))
    (export $c "config-problem" (type $config-problem))
    (export "trigger" (type $trigger))
    (export $q "request" (type $request))
    (export "target" (type $target))
    (export "verdict" (type $verdict))
    (export "decision" (type $decision))
    (export $r "report" (type $report))
    (export "unknown-targets" (type $unknown-targets))
    (export "engine-error" (type $engine-error))
    (export $f "failure" (type $failure))
    (export "describe" (func $describe) (func (result $d)))
    (export "validate-config" (func $validate-config)
      (func (param "config" string) (result (result (error (list $c))))))
    (export "refresh" (func $refresh)
      (func (param "request" $q) (param "config" string) (result (result $r (error $f))))))
  (instance $policy (instantiate $naming
    (with "description" (type $description)) (with "config-problem" (type $config-problem))
    (with "trigger" (type $trigger)) (with "request" (type $request)) (with "target" (type $target))
    (with "verdict" (type $verdict)) (with "decision" (type $decision)) (with "report" (type $report))
    (with "unknown-targets" (type $unknown-targets)) (with "engine-error" (type $engine-error))
    (with "failure" (type $failure)) (with "describe" (func $describe))
    (with "validate-config" (func $validate-config)) (with "refresh" (func $refresh))))
  (export "refit:policy/policy@0.1.0" (instance $policy)))
