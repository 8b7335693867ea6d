"""Pod networks by CNI plugins: which configuration is in force, how plugins are run, what is kept.

CNI is a protocol of programs: a plugin gets a command and identities in its environment, a JSON
document on standard input, and answers with JSON. The model here:

    conf_dir ──► config.NetworkConfig (a list of plugins) ──► network.PodNetwork ──► Attached
                   ▲ followed by readiness                      │ one exec per plugin, by invoke
                                                                ▼
                 cache: configuration before ADD, result after; DEL uses what was saved

* A *network* is a list of plugins. ADD runs them in order and hands each the result of the one
  before (`prevResult`); DEL runs all of them in reverse order, keeps going over failures, and may
  be repeated; it uses the configuration that ADD used, so pods can go after the file went.
* An *attachment* is one pod in one network under one interface name (eth0). Operations on one pod
  wait for each other; pods do not wait for pods. Only garbage collection wants to be alone.
* Nothing is believed: configurations and results are parsed into values or refused with a named
  error, output is bounded, every call has a time limit past which its process group is killed.
* Ready or not is one value, recomputed when the directory changes and every few seconds, so asking
  costs nothing. Where the configuration is of CNI 1.1, the plugins' own STATUS counts too.
* Loopback is brought up by whoever makes the namespace; the loopback plugin is never needed.

| module     | for what                                                                        |
|------------|---------------------------------------------------------------------------------|
| settings   | directories, time limits                                                        |
| errors     | the specification's error codes; failures by plugin                             |
| document   | JSON as values: decoding that ends in a value or a named error                  |
| attachment | what plugins are told about a pod: CNI_ARGS, capability arguments               |
| config     | configuration files and directories                                             |
| result     | results of every version, conversions, the pod's addresses                      |
| idle       | plugins that have nothing to do for a pod, which are not run                    |
| invoke     | one plugin, run once                                                            |
| cache      | what was used and answered, on disk                                             |
| memory     | what a detachment needs, read from it in one go                                 |
| chain      | a network's plugins in their order, over failures                               |
| turns      | who waits for whom                                                              |
| leftovers  | plugins that a dead daemon left running                                         |
| readiness  | the directory followed, NetworkReady                                            |
| network    | `PodNetwork`, the whole                                                         |
"""
