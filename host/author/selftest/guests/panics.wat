;; Panics when it is to make a refresh
(func $decide-nothing (export "refresh") (type $refresh) unreachable)
