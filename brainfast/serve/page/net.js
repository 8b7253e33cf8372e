// Replies of the server, or errors in its words.

export async function answered(path, signal) {
  const reply = await fetch(path, { signal });
  if (reply.ok) return reply;
  const { error } = await reply.json().catch(() => ({ error: reply.statusText }));
  throw new Error(error);
}

// Shows a candidate's picture in `img`, unless another was asked for meanwhile.
export async function loadPicture(img, image, size, done, failed) {
  const still = () => img.dataset.image === image;
  try {
    const path = `v1/picture?size=${size}&image=${encodeURIComponent(image)}`;
    const url = URL.createObjectURL(await (await answered(path)).blob());
    if (!still()) return URL.revokeObjectURL(url);
    img.onload = () => URL.revokeObjectURL(url);
    img.src = url;
    img.hidden = false;
    done?.();
  } catch (error) {
    if (still()) failed?.(error.message);
  }
}
