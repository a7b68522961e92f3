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

const int kApiVersion = BIM_API_VERSION;
const int kApiMinVersion = BIM_API_MIN_VERSION;
const int kLonghornApiVersion = BIM_LONGHORN_API_VERSION;
const int kLonghornApiMinVersion = BIM_LONGHORN_API_MIN_VERSION;
const int kDiskFormatVersion = BIM_DISK_FORMAT_VERSION;
const int kDiskFormatMinVersion = BIM_DISK_FORMAT_MIN_VERSION;

const char* Version() { return BIM_VERSION; }
const char* GitCommit() { return BIM_GIT_COMMIT; }
const char* BuildDate() { return BIM_BUILD_DATE; }

}  // namespace bim::meta
