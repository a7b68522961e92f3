#include "pkg/meta/version.h"

#ifndef BIM_VERSION
#define BIM_VERSION "unknown"
#endif
#ifndef BIM_GIT_COMMIT
#define BIM_GIT_COMMIT "unknown"
#endif
#ifndef BIM_BUILD_DATE
#define BIM_BUILD_DATE "unknown"
#endif

namespace bim::meta {

const char* Version() { return BIM_VERSION; }
const char* GitCommit() { return BIM_GIT_COMMIT; }
const char* BuildDate() { return BIM_BUILD_DATE; }

}  // namespace bim::meta
