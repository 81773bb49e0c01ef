;; Computes for ever, and gets all the time that a policy has
(func $decide-for-ever (export "refresh") (type $refresh) (loop $for-ever (br $for-ever)) unreachable)
