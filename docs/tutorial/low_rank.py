# %% [markdown]
# # A tutorial

# %%
print(1 + 1)
