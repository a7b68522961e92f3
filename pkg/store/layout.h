// Where things lie on a disk. The names outside .bim are Longhorn's; an
// upstream manager that takes the disk over cleans up only those temp names.
#pragma once

#include <compare>
#include <string>
#include <tuple>

namespace bim::store {

inline constexpr char kIdentityFile[] = "longhorn-disk.cfg";
inline constexpr char kImagesDir[] = "backing-images";
inline constexpr char kBimDir[] = ".bim";
inline constexpr char kFormatFile[] = ".bim/format";
inline constexpr char kLockFile[] = ".bim/lock";
inline constexpr char kOwnerFile[] = ".bim/owner";
inline constexpr char kDesiredDir[] = ".bim/desired";

// Where the files of an image lie on its disk.
enum class Place {
  kImages,     // backing-images/<name>-<uuid>/backing...
  kDataSource  // tmp/<name>-<uuid>...: the first file, before it is an image's
};
inline constexpr char kDataSourceDir[] = "tmp";

// Which image: both parts have passed base::CheckName. A value. Where its files
// lie is no part of what it is.
struct ImageKey {
  std::string name;
  std::string uuid;
  Place place = Place::kImages;
  friend bool operator==(const ImageKey& a, const ImageKey& b) {
    return a.name == b.name && a.uuid == b.uuid;
  }
  friend auto operator<=>(const ImageKey& a, const ImageKey& b) {
    return std::tie(a.name, a.uuid) <=> std::tie(b.name, b.uuid);
  }
};

// "<name>-<uuid>": not one to one ("a-b" + "c" and "a" + "b-c" share it), so
// whoever adds an image refuses one whose directory is another's.
inline std::string DirName(const ImageKey& key) {
  return key.name + "-" + key.uuid;
}
// The directory of its files: its own, or that of all data sources.
inline std::string ImageDir(const ImageKey& key) {
  return key.place == Place::kDataSource
             ? std::string(kDataSourceDir)
             : std::string(kImagesDir) + "/" + DirName(key);
}
// The ready file.
inline std::string DataFile(const ImageKey& key) {
  return ImageDir(key) + "/" +
         (key.place == Place::kDataSource ? DirName(key) : "backing");
}
// The file in work.
inline std::string TempFile(const ImageKey& key) {
  return DataFile(key) + ".tmp";
}
// Longhorn's metadata (JSON).
inline std::string ConfigFile(const ImageKey& key) {
  return DataFile(key) + ".cfg";
}
// Ours: the record with the manifest of a ready file, or the resume journal of
// one in work.
inline std::string RecordFile(const ImageKey& key) {
  return DataFile(key) + ".bim";
}
// Locked by the process that makes a data source's file.
inline std::string DataSourceLock(const ImageKey& key) {
  return DataFile(key) + ".lock";
}
// A file that was found damaged, kept when it was replaced by a repaired one.
inline constexpr char kDamagedDir[] = ".bim/damaged";
inline std::string DamagedFile(const ImageKey& key) {
  return std::string(kDamagedDir) + "/" + DirName(key);
}
inline std::string DesiredFile(const ImageKey& key) {
  return std::string(kDesiredDir) + "/" + DirName(key) + ".json";
}

}  // namespace bim::store
