// Where things lie on a disk. The names outside .bim are Longhorn's; an
// upstream manager that takes the disk over cleans up only those temp names.
#pragma once

#include <string>

namespace bim::store {

inline constexpr char kIdentityFile[] = "longhorn-disk.cfg";
inline constexpr char kImagesDir[] = "backing-images";
inline constexpr char kBimDir[] = ".bim";
inline constexpr char kFormatFile[] = ".bim/format";
inline constexpr char kLockFile[] = ".bim/lock";
inline constexpr char kOwnerFile[] = ".bim/owner";
inline constexpr char kDesiredDir[] = ".bim/desired";

// Which image: both parts have passed base::CheckName. A value.
struct ImageKey {
  std::string name;
  std::string uuid;
  friend auto operator<=>(const ImageKey&, const ImageKey&) = default;
};

// "<name>-<uuid>": not one to one ("a-b" + "c" and "a" + "b-c" share it), so
// whoever adds an image refuses one whose directory is another's.
inline std::string DirName(const ImageKey& key) {
  return key.name + "-" + key.uuid;
}
inline std::string ImageDir(const ImageKey& key) {
  return std::string(kImagesDir) + "/" + DirName(key);
}
// The ready file.
inline std::string DataFile(const ImageKey& key) {
  return ImageDir(key) + "/backing";
}
// The file in work.
inline std::string TempFile(const ImageKey& key) {
  return ImageDir(key) + "/backing.tmp";
}
// Longhorn's metadata (JSON).
inline std::string ConfigFile(const ImageKey& key) {
  return ImageDir(key) + "/backing.cfg";
}
// Ours: the record with the manifest of a ready file, or the resume journal of
// one in work.
inline std::string RecordFile(const ImageKey& key) {
  return ImageDir(key) + "/backing.bim";
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
